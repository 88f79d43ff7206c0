//! Which driver an interface has, and whether it takes VLAN tags out.

use std::{io, os::fd::AsRawFd as _};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `ETHTOOL_GDRVINFO` (include/uapi/linux/ethtool.h).
const GDRVINFO: u32 = 3;
/// `ETHTOOL_GFLAGS`.
const GFLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`.
const RXVLAN: u32 = 1 << 8;
/// `SIOCETHTOOL` (include/uapi/linux/sockios.h).
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// `IFNAMSIZ`.
const NAME: usize = 16;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 32 * 4 + 12 + 5 * 4],
}

const _: () = assert!(size_of::<DriverInfo>() == 196, "the kernel's layout");

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// `struct ifreq`, as far as this call reads it; the kernel copies all forty bytes.
#[repr(C)]
struct Request<T> {
    name: [u8; NAME],
    data: *mut T,
    pad: [u8; 16],
}

const _: () = assert!(
    size_of::<*mut Value>() != 8 || size_of::<Request<Value>>() == 40,
    "layout"
);

/// Asks about an interface of this thread's network.
///
/// # Safety
///
/// `about` is the kernel's structure of the command that is its first field.
unsafe fn ask<T>(interface: &str, about: &mut T) -> io::Result<()> {
    let mut name = [0; NAME];
    // One byte less: the kernel wants a NUL at the end.
    for (place, byte) in name.iter_mut().take(NAME - 1).zip(interface.bytes()) {
        *place = byte;
    }
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request = Request {
        name,
        data: core::ptr::from_mut(about),
        pad: [0; 16],
    };
    // SAFETY: the request has the kernel's layout, as has what it points to, says the caller; both live until after the
    // call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The name of an interface's driver, such as `veth` or `virtio_net`; interfaces of this thread's network.
///
/// # Errors
///
/// If there is no such interface, or its driver does not tell.
pub fn driver_of(interface: &str) -> io::Result<String> {
    let mut info = DriverInfo {
        cmd: GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: the structure of that command.
    unsafe { ask(interface, &mut info)? };
    let driver = info.driver.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(driver.unwrap_or_default()).into_owned())
}

/// Whether an interface takes VLAN tags out of the frames that it receives (`rx-vlan-offload` of `ethtool -k`), so that
/// XDP programs see none; interfaces of this thread's network.
///
/// # Errors
///
/// If there is no such interface.
pub fn takes_tags_out(interface: &str) -> io::Result<bool> {
    let mut flags = Value {
        cmd: GFLAGS,
        data: 0,
    };
    // SAFETY: the structure of that command.
    unsafe { ask(interface, &mut flags)? };
    Ok(flags.data & RXVLAN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_has_no_driver() {
        assert!(driver_of("no-such-interface-as-this").is_err());
        assert!(takes_tags_out("no-such-interface-as-this").is_err());
        assert!(!takes_tags_out("lo").unwrap());
    }
}
