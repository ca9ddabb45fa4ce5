//! Links by process: finds the process that opened a connection in Linux's `/proc`.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use vidlog_test_support::{Link, Proxy};

/// The links of processes. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct ConnectionOwners(Arc<Mutex<Vec<OwnLink>>>);

/// A process id, and the link of the process.
type OwnLink = (u32, Arc<Link>);

impl ConnectionOwners {
    /// Sets the link of a process's future connections.
    pub(crate) fn set(&self, pid: u32, link: &Arc<Link>) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Several processes may share a link. Those that have exited need none.
        owners.retain(|(other, _)| *other != pid && Path::new(&format!("/proc/{other}")).exists());
        owners.push((pid, link.clone()));
    }

    /// Starts a proxy whose connections have the link of the process that opens them; no other process can use it. Kafka
    /// advertises one address to all clients, so one proxy serves them all.
    pub(crate) async fn proxy(&self, listen: &str, target: String) -> std::io::Result<Proxy> {
        let owners = self.clone();
        Proxy::choosing(listen, target, move |peer, proxy| owners.link(peer, proxy)).await
    }

    fn link(&self, peer: SocketAddr, proxy: SocketAddr) -> Option<Arc<Link>> {
        let owners = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pids: Vec<_> = owners.iter().map(|(pid, _)| *pid).collect();
        let pid = owner(peer, proxy, &pids)?;
        owners.into_iter().find_map(|(other, link)| (other == pid).then_some(link))
    }
}

/// The process among `pids` that opened the connection from `peer` to `proxy`, both on this machine; `None` if it has
/// closed it already.
fn owner(peer: SocketAddr, proxy: SocketAddr, pids: &[u32]) -> Option<u32> {
    let socket = format!("socket:[{}]", inode(peer.port(), proxy.port())?);
    pids.iter().copied().find(|pid| has_open(*pid, &socket))
}

/// The inode of the socket that connects two ports, from the local port's entry.
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn greeting(proxy: &Proxy) -> std::io::Result<u8> {
        TcpStream::connect(proxy.address).await?.read_u8().await
    }

    #[tokio::test]
    async fn only_known_processes_pass_the_proxy() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                stream.write_u8(7).await.unwrap();
            }
        });
        let owners = ConnectionOwners::default();
        let proxy = owners.proxy("127.0.0.1:0", address).await.unwrap();
        greeting(&proxy).await.unwrap_err();
        owners.set(std::process::id(), &Link::open());
        assert_eq!(greeting(&proxy).await.unwrap(), 7);
    }
}
