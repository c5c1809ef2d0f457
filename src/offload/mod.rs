//! What TUN devices and network cards leave to the sender and to the receiver: super-packets and open checksums. Pure
//! functions over byte slices.
//!
//! ```text
//! out   VnetHeader::parse -> no GSO:  finish (complete the checksum)
//!                         -> GSO:     Split::plan -> Split::write for each packet
//! in    Candidate::parse  -> Run::join ... -> Run::header: one super-packet for the container's kernel
//! ```
//!
//! Invariants
//! - Every packet that leaves here to be sent has complete and correct checksums: other implementations of ESP read it.
//! - What was cut and joined again is the same packets; what was joined and is cut again, too. The identification of
//!   IPv4 packets with DF, which means nothing (RFC 6864), is the one thing that may change.
//! - A wrong checksum is never made good: such a packet travels and arrives as it is.
//! - Nothing here allocates.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod checksum;
mod coalesce;
mod split;
mod too_big;
mod vnet;

pub use coalesce::{Candidate, Headers, MAX_HEADERS_LEN, MAX_RUN_PACKETS, Run};
pub use split::Split;
pub use too_big::TooBig;
pub use vnet::{Gso, GsoKind, OpenChecksum, Unfinished, VNET_HEADER_LEN, VnetHeader};

use checksum::Sum;

/// Does what the virtio header leaves to do to a packet that is not to be cut.
pub fn finish(header: &VnetHeader, packet: &mut [u8]) -> Result<(), Unfinished> {
    if header.gso.is_some() {
        return Err(Unfinished);
    }
    let Some(open) = header.checksum else { return Ok(()) };
    let segment = packet.get_mut(usize::from(open.start)..).ok_or(Unfinished)?;
    // The field holds the sum of the pseudo-header.
    let sum = Sum::default().add(segment).transport_checksum();
    let field = segment.get_mut(usize::from(open.offset)..).and_then(|rest| rest.first_chunk_mut::<2>());
    *field.ok_or(Unfinished)? = sum;
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
