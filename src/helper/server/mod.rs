//! The helper's loop.
use super::HelperOptions;
use crate::sys::seqpacket::SeqPacket;
use std::io;
pub(super) fn run(_socket: &SeqPacket, _options: &HelperOptions) -> io::Result<()> {
    Ok(())
}
