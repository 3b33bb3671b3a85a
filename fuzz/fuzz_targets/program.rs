#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| candlewick_fuzz::program(bytes));
