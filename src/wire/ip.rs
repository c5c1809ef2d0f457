//! A small view of an IP packet inside the overlay: version, addresses, lengths. Built on `etherparse`; every field is
//! checked against the slice, so that what a view says can be relied upon.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};
use std::net::IpAddr;

/// Why octets are not an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IpError {
    /// The version nibble is neither 4 nor 6.
    #[error("not IPv4 or IPv6")]
    Version,
    /// The header is malformed or cut off.
    #[error("malformed IP header")]
    Header,
    /// The packet says that it is longer than the octets at hand, or shorter than its own header.
    #[error("bad IP total length")]
    Length,
}

/// What the fixed header of an IP packet says. Extension headers of IPv6 are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpView {
    /// Source address; its variant is the version.
    pub source: IpAddr,
    /// Destination address, of the same version.
    pub destination: IpAddr,
    /// Octets of the header: IPv4 with its options, or the 40 of IPv6.
    pub header_len: usize,
    /// Octets of the whole packet: at least `header_len`, at most what was parsed.
    pub total_len: usize,
    /// IPv4's protocol, or IPv6's first next header.
    pub protocol: u8,
    /// DSCP (upper 6 bits) and ECN (lower 2 bits).
    pub traffic_class: u8,
    /// A fragment of a larger IPv4 packet. Fragments of IPv6 show as `protocol` 44.
    pub fragment: bool,
}

impl IpView {
    /// Reads the packet at the front of `packet`; octets after its total length are allowed.
    pub fn parse(packet: &[u8]) -> Result<IpView, IpError> {
        let view = match packet.first().map(|octet| octet >> 4) {
            Some(4) => IpView::parse_v4(packet)?,
            Some(6) => IpView::parse_v6(packet)?,
            _ => return Err(IpError::Version),
        };
        if view.total_len < view.header_len || view.total_len > packet.len() {
            return Err(IpError::Length);
        }
        Ok(view)
    }

    /// Whether it is IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.source.is_ipv6()
    }

    fn parse_v4(packet: &[u8]) -> Result<IpView, IpError> {
        let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_| IpError::Header)?;
        Ok(IpView {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            header_len: header.slice().len(),
            total_len: usize::from(header.total_len()),
            protocol: header.protocol().0,
            traffic_class: (header.dcp().value() << 2) | header.ecn().value(),
            fragment: header.is_fragmenting_payload(),
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<IpView, IpError> {
        let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| IpError::Header)?;
        let header_len = header.slice().len();
        Ok(IpView {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            header_len,
            total_len: header_len + usize::from(header.payload_length()),
            protocol: header.next_header().0,
            traffic_class: header.traffic_class(),
            fragment: false,
        })
    }
}

#[cfg(test)]
mod tests;
