//! nginx as the reverse proxy of services under test. `deploy/local/install` installs it.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use axum::Router;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    time::timeout,
};
use vidlog_contract::error::too_many_connections;
use vidlog_service_kit::{
    serve::{ConnectionLimits, Peers, Server},
    shutdown::Shutdown,
};

use crate::{
    process::ChildProcess,
    wait::{DEADLINE, until},
};

/// How a request declares the size of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its Content-Length.
    Length,
    /// As one chunk.
    Chunked,
}

/// Serves an API on a port until the test ends.
pub async fn listen(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::api(router, ConnectionLimits::default(), Peers::Clients, too_many_connections);
    tokio::spawn(server.serve(listener, Shutdown::new()));
    address
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, content_type: &str, framing: Framing, body: &[u8]) -> Vec<u8> {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: {content_type}");
    let length = body.len();
    match framing {
        Framing::Length => [format!("{head}\r\ncontent-length: {length}\r\n\r\n").as_bytes(), body].concat(),
        Framing::Chunked => {
            let chunk = format!("{head}\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n");
            [chunk.as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
        }
    }
}

/// Whether nginx reads the whole body of a request before it forwards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffering {
    /// It does, which is its default.
    On,
    /// It forwards the body as it arrives.
    Off,
}

/// A running nginx; dropping it kills it.
pub struct Nginx {
    folder: TempDir,
    _process: ChildProcess,
}

impl Nginx {
    /// Starts an nginx that balances over servers, in a folder of its own.
    pub async fn start(servers: &[SocketAddr], buffering: Buffering) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("nginx.conf"), config(folder.path(), servers, buffering)).unwrap();
        // Debian's package installs it where the PATH of users does not lead.
        let program = if fs::exists("/usr/sbin/nginx").unwrap() { "/usr/sbin/nginx" } else { "nginx" };
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-e", "stderr"]);
        command.stderr(Stdio::null());
        let process = ChildProcess::spawn(&mut command);
        let nginx = Self { folder, _process: process };
        until("nginx listens", async || nginx.connect().await.is_ok()).await;
        nginx
    }

    /// Sends a request and returns the response, which nginx ends by closing the connection. Reads while it sends, and
    /// stops sending if nginx closes the connection.
    pub async fn send(&self, request: &[u8]) -> String {
        let (mut from, mut to) = self.connect().await.unwrap().into_split();
        let mut response = Vec::new();
        let exchanged = async {
            // nginx may close before it has read everything.
            _ = tokio::join!(to.write_all(request), from.read_to_end(&mut response));
        };
        timeout(DEADLINE, exchanged).await.expect("nginx responds");
        String::from_utf8_lossy(&response).into_owned()
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.folder.path().join("socket")).await
    }
}

/// A socket file instead of a port, so that tests cannot take each other's.
fn config(folder: &Path, servers: &[SocketAddr], buffering: Buffering) -> String {
    let socket = folder.join("socket");
    let socket = socket.display();
    let servers: Vec<_> = servers.iter().map(|server| format!("server {server};")).collect();
    let servers = servers.join(" ");
    let unbuffered = match buffering {
        Buffering::On => "",
        Buffering::Off => "proxy_request_buffering off; proxy_http_version 1.1;",
    };
    format!(
        "daemon off; master_process off; pid nginx.pid;
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            upstream api {{ {servers} }}
            server {{
                listen unix:{socket};
                client_max_body_size 0;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                location / {{ proxy_pass http://api; {unbuffered} }}
            }}
        }}"
    )
}
