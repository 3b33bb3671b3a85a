//! The one long table, and how it says where it came from.
