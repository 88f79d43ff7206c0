//! TCP ports that something on this host listens on and others can reach.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    net::{IpAddr, Ipv6Addr},
};

/// The kernel's tables of sockets, of the thread's network.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// Most bytes of a table that are read: some 100,000 listeners.
const MAX_TABLE: u64 = 16 << 20;
/// `TCP_LISTEN` as the tables print it (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";

/// The ports that have a listener on an address other than loopback.
///
/// # Errors
///
/// If a table cannot be read; one that does not exist (a kernel without IPv6) is empty.
pub fn tcp_ports() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for table in TABLES {
        match File::open(table) {
            Ok(file) => listening(BufReader::new(file.take(MAX_TABLE)), &mut ports)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}

/// Reads a table up to its first socket that does not listen: the kernel prints the listeners first
/// (`tcp_get_idx` in `net/ipv4/tcp_ipv4.c`), and of the others there may be a million.
fn listening(table: impl BufRead, ports: &mut BTreeSet<u16>) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        if let Some((address, port)) = local.and_then(endpoint)
            && !address.to_canonical().is_loopback()
        {
            ports.insert(port);
        }
    }
    Ok(())
}

/// `0100007F:1F90`: words of the address as this machine reads them, and the port.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let words = address.as_bytes().chunks(8);
    for (place, word) in bytes.chunks_mut(4).zip(words) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match address.len() {
        8 => {
            let [a, b, c, d, ..] = bytes;
            IpAddr::from([a, b, c, d])
        }
        32 => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_up_to_the_first_other_socket_and_loopback_is_left_out() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 00000000000000000000000001000000:0278 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3
   3: 0000000000000000FFFF00000100007F:0279 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3
   4: B80D0120000000000000000001000000:01BB 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3
   5: nonsense:0050 00000000:0000 0A
   6: 0100000A:9999 0200000A:0050 01 00000000:00000000 00:00000000 00000000     0        0 4 1
   7: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1
";
        let mut ports = BTreeSet::new();
        listening(table.as_bytes(), &mut ports).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(ports, BTreeSet::from([22, 443]));
        }
    }

    #[test]
    fn a_listener_of_this_process_is_found_and_one_on_loopback_is_not() {
        let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = tcp_ports().unwrap();
        assert!(ports.contains(&open.local_addr().unwrap().port()));
        assert!(!ports.contains(&closed.local_addr().unwrap().port()));
    }
}
