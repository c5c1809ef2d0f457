//! The control port among strangers: wrong certificates, wrong clocks, other versions, garbage.

use super::super::authority::{Names, issue};
use super::*;
use crate::types::Role;
use crate::wire::control::{Answer, Opening};
use crate::wire::frame;
use futures_rustls::TlsConnector;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::TcpStream;
use std::sync::Arc;

/// Believes everybody: an attacker does not mind whom it talks to.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

type Tls = futures_rustls::client::TlsStream<TcpStream>;

async fn stranger(control: SocketAddr, alpn: &[&[u8]]) -> std::io::Result<Tls> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(control).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(control.ip().into()), tcp).await
}

#[test]
fn another_version_is_told_both_versions() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let stream = stranger(swarm.control, &[b"formic/3"]).await.unwrap();
        let (read, write) = smol::io::split(stream);
        let mut reader = tls::FrameReader::new(read, 1 << 16);
        let mut writer = tls::FrameWriter::new(write);
        writer.write(&Opening::Leave).await.unwrap();
        let Answer::Refused { reason } = reader.read(DEADLINE).await.unwrap() else { panic!("not refused") };
        assert!(reason.contains("formic/2") && reason.contains("formic/3"), "{reason}");
        assert_eq!(swarm.manager.drops()["other_version"], 1);
        for alpn in [&[b"h2".as_slice()] as &[&[u8]], &[], &[b"formic/x"], &[b"formic/"]] {
            assert!(stranger(swarm.control, alpn).await.is_err(), "{alpn:?}");
        }
        // Of several versions the one that is ours is taken.
        let both = stranger(swarm.control, &[b"formic/3", b"formic/2"]).await.unwrap();
        assert_eq!(both.get_ref().1.alpn_protocol(), Some(b"formic/2".as_slice()));
        assert_eq!(
            both.get_ref().1.negotiated_key_exchange_group().unwrap().name(),
            rustls::NamedGroup::X25519MLKEM768
        );
        swarm.manager.stop().await;
    });
}

/// Lets the manager present a certificate made at another time, or another node's.
fn present(swarm: &Swarm, made_at: UnixTime, role: Role) {
    let key = NodeKey::generate().unwrap();
    let issued = swarm.manager.with_state(|state| {
        let names = Names { node: swarm.manager.node(), role, cluster: state.cluster.id };
        issue(&state.cluster.authority, &key.request().unwrap(), names, made_at, 3600).unwrap()
    });
    swarm.manager.inner.credentials.present(Identity::new(&key, issued.chain).unwrap());
}

#[test]
fn clock_skew_and_false_managers_are_named() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let (now, identity) = (wall_clock(), swarm.join().await);
        let attempt = async |made_at, role| {
            present(&swarm, made_at, role);
            let session = tls::open_session(swarm.control, &identity, session_request(BootId(random()))).await;
            let join = swarm.try_join(&swarm.token()).await;
            match (session, join) {
                (Ok(_), Ok(_)) => String::new(),
                (Err(session), Err(join)) => {
                    assert_eq!(session.to_string(), join.to_string());
                    session.to_string()
                }
                (session, join) => panic!("session {}, join {}", session.is_ok(), join.is_ok()),
            }
        };
        for within in [now.0 + 590, now.0 - 3600 - 590] {
            assert_eq!(attempt(UnixTime(within), Role::Manager).await, "", "10 minutes are allowed");
        }
        let early = attempt(UnixTime(now.0 + 7200), Role::Manager).await;
        assert!(early.contains("not valid yet: clock skew of 7") && early.contains("compare the clocks"), "{early}");
        let late = attempt(UnixTime(now.0 - 7200), Role::Manager).await;
        assert!(late.contains("expired") && late.contains("clock skew"), "{late}");
        let worker = attempt(now, Role::Worker).await;
        assert!(worker.contains("no secure connection"), "a worker is no manager: {worker}");
        present(&swarm, now, Role::Manager);

        // The other way round: the node's own certificate has run out.
        let key = NodeKey::generate().unwrap();
        let issued = swarm.manager.with_state(|state| {
            let names = Names { node: identity.peer().node, role: Role::Worker, cluster: state.cluster.id };
            issue(&state.cluster.authority, &key.request().unwrap(), names, UnixTime(now.0 - 7200), 3600).unwrap()
        });
        let expired = Identity::new(&key, issued.chain).unwrap();
        let refused = tls::open_session(swarm.control, &expired, session_request(BootId([1; 8]))).await.err().unwrap();
        assert!(refused.to_string().contains("compare the clocks"), "{refused}");
        swarm.manager.stop().await;
    });
}

/// Connections of garbage in all.
const GARBAGE: usize = 10_000;

#[test]
fn ten_thousand_broken_openings_do_not_touch_a_session() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut agent = swarm.agent(swarm.join().await).await;
        agent.push().await;
        let node = agent.node;
        let state = swarm.manager.state().to_bytes().unwrap();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let living = smol::spawn(async move {
            let mut beats = 0;
            while stopped.is_empty() {
                agent.say(FromAgent::Heartbeat).await;
                while !matches!(agent.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
                beats += 1;
                smol::Timer::after(Duration::from_millis(100)).await;
            }
            (agent, beats)
        });
        let control = swarm.control;
        let mut floods = Vec::new();
        for seed in 0..20u64 {
            floods.push(smol::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed);
                for round in 0..GARBAGE / 20 {
                    // Every fiftieth gets through the handshake first: that is dear for both sides.
                    if round % 50 == 0 {
                        mutated_opening(control, &mut rng).await
                    } else {
                        raw(control, &mut rng).await
                    }
                }
            }));
        }
        for flood in floods {
            flood.await;
        }
        stop.send(()).await.unwrap();
        let (agent, beats) = living.await;
        assert!(beats > 3);
        let drops = swarm.manager.drops();
        let total: u64 = drops.values().sum();
        assert!(total >= GARBAGE as u64 * 9 / 10, "counted: {drops:?}");
        assert!(drops["malformed"] + drops["frame_too_long"] > 20, "{drops:?}");
        assert!(*swarm.manager.state().to_bytes().unwrap() == *state, "nothing changed");
        assert!(swarm.manager.with_state(|state| state.nodes[&node].state == crate::cluster::NodeState::Ready));
        drop(agent);
        // And the door still opens.
        swarm.join().await;
        swarm.manager.stop().await;
    });
}

/// Random or mutated octets on the bare connection.
async fn raw(control: SocketAddr, rng: &mut StdRng) {
    let mut bytes = vec![0; rng.random_range(0..400)];
    rng.fill(bytes.as_mut_slice());
    if rng.random_bool(0.5) && bytes.len() > 5 {
        // A TLS handshake record of that length.
        let len = (bytes.len() - 5) as u16;
        bytes[..3].copy_from_slice(&[22, 3, 1]);
        bytes[3..5].copy_from_slice(&len.to_be_bytes());
    }
    let Ok(mut tcp) = TcpStream::connect(control).await else { return };
    // The manager may have hung up already.
    let _ = tcp.write_all(&bytes).await;
    let _ = tcp.shutdown(std::net::Shutdown::Write);
    let _ = tcp.read(&mut [0; 64]).await;
}

/// A handshake, then a frame that is broken in one way or another.
async fn mutated_opening(control: SocketAddr, rng: &mut StdRng) {
    let Ok(mut stream) = stranger(control, &[b"formic/2"]).await else { return };
    let mut bytes = frame::encode(&Opening::Session(session_request(BootId(rng.random())))).unwrap().to_vec();
    match rng.random_range(0..4) {
        0 => bytes[..4].copy_from_slice(&rng.random::<u32>().to_be_bytes()),
        1 => rng.fill(&mut bytes[4..]),
        2 => bytes[4] = rng.random_range(4..=255),
        _ => {
            let at = rng.random_range(4..bytes.len());
            bytes.truncate(at);
            let len = (at - 4) as u32;
            bytes[..4].copy_from_slice(&len.to_be_bytes());
        }
    }
    let _ = stream.write_all(&bytes).await;
    let _ = stream.close().await;
    let _ = stream.read(&mut [0; 64]).await;
}

#[test]
fn a_node_that_sends_garbage_loses_its_own_session_only() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let (mut good, mut bad) = (swarm.agent(swarm.join().await).await, swarm.agent(swarm.join().await).await);
        good.push().await;
        bad.session.writer.write_frames(&[Zeroizing::new(vec![0, 0, 0, 2, 0xff, 0xff])]).await.unwrap();
        assert!(!bad.until_ended().await);
        assert_eq!(swarm.manager.drops()["malformed"], 1);
        good.say(FromAgent::Heartbeat).await;
        while !matches!(good.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
        let mut bad = swarm.agent(bad.identity).await;
        bad.session.writer.write_frames(&[Zeroizing::new(vec![0xff; 4])]).await.unwrap();
        bad.until_ended().await;
        assert_eq!(swarm.manager.drops()["frame_too_long"], 1);
        swarm.manager.stop().await;
    });
}
