//! Connections from chosen loopback addresses, so that attackers and users have different ones.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use reqwest::Client;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
};
use uuid::Uuid;

/// How long a call may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the address of a normal user.
pub(crate) const fn user_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, number)
}

/// Returns the address of an attacker; each attack has its own third byte.
pub(crate) const fn attacker_address(attack: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 66, attack, number)
}

/// Returns a client with keep-alive whose connections come from an address.
pub(crate) fn client(source: Ipv4Addr) -> anyhow::Result<Client> {
    Ok(Client::builder().local_address(IpAddr::V4(source)).timeout(CALL_TIMEOUT).build()?)
}

/// Opens a connection from an address.
pub(crate) async fn connect(source: Ipv4Addr, api: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    socket.connect(api).await
}

/// Opens a connection from an address, whose receive buffer is as small as the kernel allows.
pub(crate) async fn connect_with_small_buffer(source: Ipv4Addr, api: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    socket.set_recv_buffer_size(1)?;
    socket.connect(api).await
}

/// Reads until the server closes the connection; returns the start of what it sent.
pub(crate) async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
        if text.len() < buffer.len() {
            text.extend_from_slice(&buffer[..bytes]);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns the status code of a response's text, or that there is none.
pub(crate) fn status_of(response: &str) -> String {
    response
        .split(' ')
        .nth(1)
        .map_or_else(|| "closed without an answer".to_owned(), |status| format!("HTTP {status}"))
}

/// Returns 16 random hexadecimal digits: the second half of a UUIDv7.
pub(crate) fn random_text() -> String {
    Uuid::now_v7().simple().to_string().split_off(16)
}
