//! Which driver an interface has.

use std::{io, os::fd::AsRawFd as _};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `ETHTOOL_GDRVINFO` (include/uapi/linux/ethtool.h).
const GDRVINFO: u32 = 3;
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

/// `struct ifreq`, as far as this call reads it; the kernel copies all forty bytes.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    data: *mut DriverInfo,
    pad: [u8; 16],
}

const _: () = assert!(
    size_of::<*mut DriverInfo>() != 8 || size_of::<Request>() == 40,
    "layout"
);

/// The name of an interface's driver, such as `veth` or `virtio_net`; interfaces of this thread's network.
///
/// # Errors
///
/// If there is no such interface, or its driver does not tell.
pub fn driver_of(interface: &str) -> io::Result<String> {
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
    let mut info = DriverInfo {
        cmd: GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    let mut request = Request {
        name,
        data: &raw mut info,
        pad: [0; 16],
    };
    // SAFETY: the request has the kernel's layout, and what it points to lives until after the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let driver = info.driver.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(driver.unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_has_no_driver() {
        assert!(driver_of("no-such-interface-as-this").is_err());
    }
}
