//! Scripts as shells read them.
