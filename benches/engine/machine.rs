//! What this machine can do, and what a piece of work took of it.

use std::fs;
use std::time::Instant;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Seconds of one run.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    pub wall: f64,
    /// Of all threads together. Others on the machine make the wall clock lie; this one less so.
    pub cpu: f64,
}

pub fn time<R>(work: impl FnOnce() -> R) -> (Time, R) {
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let result = work();
    let wall = wall.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    (Time { wall, cpu }, result)
}

/// Nanosecond counts of every thread; `getrusage` counts in ticks on some kernels.
fn cpu_seconds() -> f64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}

/// The most memory that this process has had, in MiB.
pub fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// GFLOP/s of fused multiply-adds in registers, on all threads of the pool at once.
pub fn fma_peak() -> f64 {
    const STEPS: usize = 20_000_000;
    let threads = rayon::current_num_threads();
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let lanes: usize = (0..threads)
            .into_par_iter()
            .with_max_len(1)
            .map(|_| Arch::new().dispatch(Registers(STEPS)))
            .sum();
        let flops = 2.0 * (STEPS * CHAINS * lanes) as f64;
        best = best.max(flops / start.elapsed().as_secs_f64() * 1e-9);
    }
    best
}

/// Independent chains of multiply-adds: more than latency times throughput, no more than there are registers.
const CHAINS: usize = 12;

struct Registers(usize);

impl WithSimd for Registers {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, term) = (
            simd.splat_f32s(std::hint::black_box(0.999)),
            simd.splat_f32s(std::hint::black_box(1e-3)),
        );
        let mut sums = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, term);
            }
        }
        std::hint::black_box(sums);
        S::F32_LANES
    }
}
