//! The running system.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use super::{Source, SystemView};

/// Where systemd-logind keeps its sessions.
const SESSIONS: &str = "/run/systemd/sessions";
/// Most session files looked at.
const MAX_SESSIONS: usize = 4096;
/// Longest session file looked at, in bytes; they have some hundred.
const MAX_SESSION_FILE: u64 = 16 * 1024;

/// The system this process runs on, seen from its network namespace.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveSystem;

/// All addresses of this network namespace, each with the name of its interface (of IPv4 its label: `eth0:1`).
///
/// # Errors
/// What the system says.
pub(in crate::sense) fn interface_addresses() -> io::Result<impl Iterator<Item = (String, IpAddr)>>
{
    let addresses = getifaddrs().map_err(io::Error::from)?;
    Ok(addresses.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let address = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))?;
        Some((interface.interface_name, address))
    }))
}

impl SystemView for LiveSystem {
    fn open(&self, source: Source) -> io::Result<Box<dyn BufRead + '_>> {
        Ok(Box::new(BufReader::new(File::open(source.path())?)))
    }

    fn own_addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(interface_addresses()?.map(|(_, address)| address).collect())
    }

    fn env(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn login_sessions(&self) -> io::Result<Option<Vec<String>>> {
        let entries = match fs::read_dir(SESSIONS) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries.take(MAX_SESSIONS) {
            let entry = entry?;
            // Next to the files are named pipes, which must not be opened.
            if !entry.file_type()?.is_file() {
                continue;
            }
            let mut bytes = Vec::new();
            match File::open(entry.path()) {
                Ok(file) => file.take(MAX_SESSION_FILE).read_to_end(&mut bytes)?,
                // The session ended in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            files.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(Some(files))
    }
}
