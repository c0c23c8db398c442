//! The word that several CPUs share: `AtomicU64` on the host, the compiler's atomic intrinsics in BPF, whose target has
//! neither compare-and-swap nor fetch-and-add in `core::sync::atomic`.
//! The only unsafe code of the library.

/// A 64-bit word in a map, changed by several CPUs and by the controller through its mapping.
#[repr(transparent)]
pub struct Shared(Cell);

#[cfg(not(target_arch = "bpf"))]
type Cell = core::sync::atomic::AtomicU64;
#[cfg(target_arch = "bpf")]
type Cell = core::cell::UnsafeCell<u64>;

// SAFETY: every access below is a single volatile or atomic instruction on an aligned word.
#[cfg(target_arch = "bpf")]
unsafe impl Sync for Shared {}

#[cfg(not(target_arch = "bpf"))]
impl Shared {
    /// A word of this value.
    pub const fn new(value: u64) -> Self {
        Self(Cell::new(value))
    }

    /// The value now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        self.0.load(core::sync::atomic::Ordering::SeqCst)
    }

    /// Sets the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        self.0.store(value, core::sync::atomic::Ordering::SeqCst);
    }

    /// Sets the value, with a full barrier.
    #[inline(always)]
    pub fn publish(&self, value: u64) {
        self.0.swap(value, core::sync::atomic::Ordering::SeqCst);
    }

    /// Sets the value if it is still `current`, and tells whether it was.
    #[inline(always)]
    pub fn replace(&self, current: u64, value: u64) -> bool {
        let order = core::sync::atomic::Ordering::SeqCst;
        self.0.compare_exchange(current, value, order, order).is_ok()
    }

    /// Adds, wrapping, and gives the value of before.
    #[inline(always)]
    pub fn fetch_add(&self, addend: u64) -> u64 {
        self.0.fetch_add(addend, core::sync::atomic::Ordering::SeqCst)
    }
}

// Only sequentially consistent operations: with `Relaxed` and a used result, rustc and LLVM 22 emit an add without
// fetch and return the addend. x86 loads and stores are ordered as the readers here need; another architecture needs
// more (docs/adr/0002).
#[cfg(target_arch = "bpf")]
impl Shared {
    /// The value now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: the reference keeps the word alive; volatile, because others write it.
        unsafe { self.0.get().read_volatile() }
    }

    /// Sets the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: the reference keeps the word alive; an aligned 64-bit store is one instruction.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Sets the value, with a full barrier.
    #[inline(always)]
    pub fn publish(&self, value: u64) {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xchg};
        // SAFETY: the reference keeps the word alive.
        unsafe { atomic_xchg::<u64, { SeqCst }>(self.0.get(), value) };
    }

    /// Sets the value if it is still `current`, and tells whether it was.
    #[inline(always)]
    pub fn replace(&self, current: u64, value: u64) -> bool {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
        // SAFETY: the reference keeps the word alive.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.get(), current, value).1 }
    }

    /// Adds, wrapping, and gives the value of before.
    #[inline(always)]
    pub fn fetch_add(&self, addend: u64) -> u64 {
        use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};
        // SAFETY: the reference keeps the word alive.
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(self.0.get(), addend) }
    }
}

/// A table of constants that is read at a computed index without a branch: the compiler must not turn it into
/// comparisons, because the verifier would follow every combination of them.
pub struct Ranks(pub [u64; 32]);

impl Ranks {
    /// The constant at `index` modulo 32.
    #[inline(always)]
    pub fn get(&self, index: u64) -> u64 {
        // SAFETY: the index is masked to the table's length; volatile only hides the values from the compiler.
        unsafe { (&raw const self.0).cast::<u64>().add((index & 31) as usize).read_volatile() }
    }
}

/// A number that the compiler does not know: a loop up to it stays a loop, where unrolling would need more stack than
/// BPF has. The verifier knows it, because read-only data is frozen before it looks.
pub struct Hidden(pub u64);

impl Hidden {
    /// The number.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: the reference is valid; volatile only hides the value from the compiler.
        unsafe { (&raw const self.0).read_volatile() }
    }
}

/// The smaller of two numbers below 2⁶³, without a branch, for the same reason.
#[inline(always)]
pub fn smaller(a: u64, b: u64) -> u64 {
    static SIGN: Hidden = Hidden(63);
    let difference = a.wrapping_sub(b);
    b.wrapping_add(difference & ((difference as i64) >> SIGN.get()) as u64)
}

/// Gives `number` back, where programs tell what they decided in another register.
///
/// An exit has numbers that other exits have not. Where it is kept until it was told, the compiler gives it the place of what
/// it was made of, and fills that also where it has no number; the verifier refuses to see a register kept that no one has
/// set.
#[inline(always)]
pub fn apart(number: u32) -> u32 {
    #[cfg(all(target_arch = "bpf", feature = "trace"))]
    {
        let copy: u64;
        // SAFETY: it moves a number from one register to another.
        unsafe {
            core::arch::asm!(
                "{1} = {0}",
                in(reg) number as u64,
                out(reg) copy,
                options(pure, nomem, nostack, preserves_flags)
            );
        };
        copy as u32
    }
    #[cfg(not(all(target_arch = "bpf", feature = "trace")))]
    number
}
