//! Any bytes through the whole data path: `cargo xtask fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lb_ebpf::testing::fuzz::run(bytes);
});
