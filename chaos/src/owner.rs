//! Which process has the other end of a connection: Linux tells it in `/proc`.

use std::{fs, net::SocketAddr};

/// The process among some that opened the connection from `peer` to `proxy`, both on this machine; `None` if it has
/// closed it already.
pub(crate) fn owner(peer: SocketAddr, proxy: SocketAddr, pids: &[u32]) -> Option<u32> {
    let socket = format!("socket:[{}]", inode(peer.port(), proxy.port())?);
    pids.iter().copied().find(|pid| has_open(*pid, &socket))
}

/// The inode of the socket that connects two ports, as it is listed for its local one.
fn inode(local: u16, remote: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is = |field: usize, port: u16| {
            let named = fields.get(field)?.rsplit_once(':')?.1;
            Some(u16::from_str_radix(named, 16).ok()? == port)
        };
        (is(1, local)? && is(2, remote)?).then(|| fields.get(9).map(ToString::to_string))?
    })
}

fn has_open(pid: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket))
}
