//! Honest traffic: a small service on every node, and a client that uses it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt,
    shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::ns;

/// The service's port.
pub const PORT: u16 = 7007;
/// How many connections the client makes in a second.
pub const CONNECTIONS_PER_SECOND: u64 = 50;

/// What is asked; the answer is the same bytes.
const MESSAGE: [u8; 32] = *b"secmesh lab: honest request 0000";
/// How long each step of an honest connection may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that are served, and made, side by side.
const SERVERS: usize = 2;
const CLIENTS: u64 = 5;

/// A service in a node's namespace; ends when dropped.
#[derive(Debug)]
pub struct Service {
    listener: Arc<TcpListener>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Service {
    /// Listens on all of the node's addresses, IPv4 and IPv6.
    ///
    /// # Errors
    /// When the port is taken, or the namespace is not there.
    pub fn start(namespace: &str) -> anyhow::Result<Self> {
        let listener = ns::within(namespace, || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))
                .with_context(|| format!("cannot listen on port {PORT}"))
        })?;
        let listener = Arc::new(listener);
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..SERVERS)
            .map(|_| {
                let (listener, stop) = (Arc::clone(&listener), Arc::clone(&stop));
                ns::spawn(namespace, move || {
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok((stream, _)) = listener.accept() {
                            // A client that breaks off is not the service's trouble.
                            let _broken_off = answer(stream);
                        }
                    }
                    Ok(())
                })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            listener,
            stop,
            threads,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the threads that wait for a connection.
        let _already_down = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    // Short: whoever connects and says nothing must not keep others waiting.
    stream.set_read_timeout(Some(PATIENCE / 4))?;
    stream.set_write_timeout(Some(PATIENCE / 4))?;
    let mut message = [0_u8; MESSAGE.len()];
    stream.read_exact(&mut message)?;
    stream.write_all(&message)
}

/// One honest connection: connect, ask, be answered.
///
/// # Errors
/// Whichever of the three did not work within a second.
pub fn ask(service: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect_timeout(&service, PATIENCE)
        .with_context(|| format!("cannot connect to {service}"))?;
    converse(stream, service)
}

/// As [`ask`], from one of several addresses of this host.
///
/// # Errors
/// As [`ask`], and when the address is not this host's.
pub fn ask_from(source: IpAddr, service: SocketAddr) -> anyhow::Result<()> {
    let family = if source.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a socket")?;
    // The limit for sending is also that for connecting.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(1))
        .context("cannot set a time limit")?;
    bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(source, 0)),
    )
    .with_context(|| format!("cannot use the address {source}"))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(service))
        .with_context(|| format!("cannot connect to {service}"))?;
    converse(TcpStream::from(socket), service)
}

fn converse(mut stream: TcpStream, service: SocketAddr) -> anyhow::Result<()> {
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("cannot set a time limit")?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .context("cannot set a time limit")?;
    stream
        .write_all(&MESSAGE)
        .with_context(|| format!("cannot send to {service}"))?;
    let mut message = [0_u8; MESSAGE.len()];
    stream
        .read_exact(&mut message)
        .with_context(|| format!("no answer from {service}"))?;
    anyhow::ensure!(message == MESSAGE, "{service} answered something else");
    Ok(())
}

/// How the client fared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections tried.
    pub attempts: u64,
    /// Connections that were answered.
    pub ok: u64,
    /// Why the first failed ones failed.
    pub failures: Vec<String>,
}

impl Tally {
    /// Whether at least 99 in 100 were answered, and there were any.
    pub fn is_good(&self) -> bool {
        self.attempts > 0 && self.ok * 100 >= self.attempts * 99
    }
}

/// A client that keeps connecting to each of some services in turn until it is stopped.
#[derive(Debug)]
pub struct Client {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<Tally>>>,
}

impl Client {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// When the namespace is not there.
    pub fn start(namespace: &str, services: &[SocketAddr]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let turn = Arc::new(AtomicU64::new(0));
        let threads = (0..CLIENTS)
            .map(|_| {
                let (stop, turn, services) =
                    (Arc::clone(&stop), Arc::clone(&turn), services.to_vec());
                ns::spawn(namespace, move || Ok(keep_asking(&stop, &turn, &services)))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { stop, threads })
    }

    /// Stops it and tells how it fared.
    ///
    /// # Errors
    /// When a thread of it could not do its work at all.
    pub fn stop(mut self) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = Tally::default();
        for thread in self.threads.drain(..) {
            let part = thread
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            total.attempts += part.attempts;
            total.ok += part.ok;
            total.failures.extend(part.failures);
        }
        total.failures.truncate(5);
        Ok(total)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn keep_asking(stop: &AtomicBool, turn: &AtomicU64, services: &[SocketAddr]) -> Tally {
    let pause = Duration::from_millis(1_000 * CLIENTS / CONNECTIONS_PER_SECOND);
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let turn = usize::try_from(turn.fetch_add(1, Ordering::Relaxed)).unwrap_or(0);
        let Some(service) = turn
            .checked_rem(services.len())
            .and_then(|index| services.get(index))
        else {
            break;
        };
        tally.attempts += 1;
        match ask(*service) {
            Ok(()) => tally.ok += 1,
            Err(error) if tally.failures.len() < 5 => tally.failures.push(format!("{error:#}")),
            Err(_) => {}
        }
        std::thread::sleep(pause.saturating_sub(started.elapsed()));
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_without_a_connection_has_not_fared_well() {
        assert!(!Tally::default().is_good());
        assert!(
            Tally {
                attempts: 100,
                ok: 99,
                failures: vec![]
            }
            .is_good()
        );
        assert!(
            !Tally {
                attempts: 100,
                ok: 98,
                failures: vec![]
            }
            .is_good()
        );
    }
}
