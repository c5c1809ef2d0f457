//! What is measured, with its unit.

/// One number of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// One TCP flow.
    Tcp,
    /// Processor time of the tunnel's processes on both hosts during that flow.
    TunnelCpu,
    /// Processor time of the whole machine during that flow, the sender's and receiver's included.
    SystemCpu,
    /// Four TCP flows together.
    Tcp4,
    /// Datagrams of 1400 octets that arrived, each sent by a call of its own.
    UdpReceived,
    /// Those that were sent.
    UdpSent,
    /// Median round trip of a small datagram each millisecond, nothing else on the way.
    IdleP50,
    /// 99th percentile of these.
    IdleP99,
    /// Median round trip beside a TCP flow that takes what it gets.
    LoadP50,
    /// 99th percentile of these.
    LoadP99,
    /// That flow.
    LoadTcp,
    /// Median round trip beside a neighbour that floods: between two other tasks of the same hosts.
    FloodP50,
    /// 99th percentile of these.
    FloodP99,
    /// Echoes that were not answered within a second meanwhile, in percent.
    FloodLost,
}

impl Metric {
    /// All, in the order of the report.
    pub const ALL: [Metric; 14] = [
        Metric::Tcp,
        Metric::TunnelCpu,
        Metric::SystemCpu,
        Metric::Tcp4,
        Metric::UdpReceived,
        Metric::UdpSent,
        Metric::IdleP50,
        Metric::IdleP99,
        Metric::LoadP50,
        Metric::LoadP99,
        Metric::LoadTcp,
        Metric::FloodP50,
        Metric::FloodP99,
        Metric::FloodLost,
    ];

    /// Its name in the JSON file.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Tcp => "tcp",
            Metric::TunnelCpu => "tcp_tunnel_cpu",
            Metric::SystemCpu => "tcp_system_cpu",
            Metric::Tcp4 => "tcp4",
            Metric::UdpReceived => "udp_received",
            Metric::UdpSent => "udp_sent",
            Metric::IdleP50 => "idle_rtt_p50",
            Metric::IdleP99 => "idle_rtt_p99",
            Metric::LoadP50 => "load_rtt_p50",
            Metric::LoadP99 => "load_rtt_p99",
            Metric::LoadTcp => "load_tcp",
            Metric::FloodP50 => "flood_rtt_p50",
            Metric::FloodP99 => "flood_rtt_p99",
            Metric::FloodLost => "flood_lost",
        }
    }

    /// The head of its column.
    pub fn head(self) -> &'static str {
        match self {
            Metric::Tcp => "TCP",
            Metric::TunnelCpu => "CPU tunnel",
            Metric::SystemCpu => "CPU all",
            Metric::Tcp4 => "4x TCP",
            Metric::UdpReceived => "UDP",
            Metric::UdpSent => "UDP sent",
            Metric::IdleP50 => "rtt p50",
            Metric::IdleP99 => "rtt p99",
            Metric::LoadP50 => "load p50",
            Metric::LoadP99 => "load p99",
            Metric::LoadTcp => "load TCP",
            Metric::FloodP50 => "flood p50",
            Metric::FloodP99 => "flood p99",
            Metric::FloodLost => "flood lost",
        }
    }

    /// Its unit.
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Tcp | Metric::Tcp4 | Metric::LoadTcp => "Gbit/s",
            Metric::TunnelCpu | Metric::SystemCpu => "s/GB",
            Metric::UdpReceived | Metric::UdpSent => "kpkt/s",
            Metric::IdleP50
            | Metric::IdleP99
            | Metric::LoadP50
            | Metric::LoadP99
            | Metric::FloodP50
            | Metric::FloodP99 => "us",
            Metric::FloodLost => "%",
        }
    }
}
