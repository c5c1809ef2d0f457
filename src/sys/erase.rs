//! A memory allocator that erases what is given back, so that no copy of a key outlives its owner on the heap: neither
//! ours nor one that a library made without erasing it. aws-lc, which has an allocator of its own, does the same.
//!
//! It costs one pass over memory that was just used. The data plane allocates nothing while it carries packets
//! (`dataplane`'s cost tests), and is as fast with it as without ([`super::confine`] has the figures).
//!
//! What it does not reach is what a function leaves on its stack ([`erase_stack`]).

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which erases on free. To be named in the binary as its `#[global_allocator]`.
pub struct ErasingAllocator;

// SAFETY: every call goes to `System` with the arguments that it came with; erasing stays within the layout.
unsafe impl GlobalAlloc for ErasingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's duty.
        unsafe { System.alloc_zeroed(layout) }
    }

    // `realloc` is the provided one: a new block, a copy, and `dealloc` of the old block. The system's own would leave
    // the old block as it is.

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block has this layout and belongs to the caller, who gives it back.
        unsafe {
            libc::explicit_bzero(block.cast(), layout.size());
            System.dealloc(block, layout);
        }
    }
}

/// Octets of stack that [`erase_stack`] erases: more than the deepest call below a key derivation leaves behind.
const STACK_BYTES: usize = 64 << 10;

/// Erases the part of this thread's stack that is free now: what the functions that were called before have left there.
#[inline(never)]
pub fn erase_stack() {
    let mut free = [0u8; STACK_BYTES];
    // SAFETY: the array lives here. The call cannot be left out by the compiler.
    unsafe { libc::explicit_bzero(free.as_mut_ptr().cast(), free.len()) };
}
