//! nginx, as a proxy and as the backend of all.

use super::{BACKEND, Ports, Routes, Setup, Who};
use crate::bench::place::argv;
use anyhow::{Context as _, Result};
use std::{fmt::Write as _, fs, path::Path};

/// What both share. Kept connections never end by count, so that no scenario measures reconnects by accident.
fn main_block(dir: &Path, workers: usize, http: &str) -> String {
    let dir = dir.display();
    format!(
        "daemon off; worker_processes {workers}; pid {dir}/nginx.pid; error_log {dir}/error.log warn;\n\
         worker_rlimit_nofile 20000;\nevents {{ worker_connections 16384; }}\nhttp {{\n\
         keepalive_requests 1000000000; keepalive_timeout 600s; sendfile on; tcp_nodelay on; server_tokens off;\n\
         ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;\n\
         client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};\n\
         open_file_cache max=100; types {{}} default_type text/plain;\n{http}}}\n"
    )
}

fn command(setup: &Setup<'_>, name: &str, text: &str) -> Result<Vec<String>> {
    let path = setup.write(name, text)?;
    Ok(argv(&[
        "nginx",
        "-p",
        setup.dir.to_str().context("path")?,
        "-e",
        "error.log",
        "-c",
        path.to_str().context("path")?,
    ]))
}

pub(super) fn prepare(setup: &Setup<'_>) -> Result<Vec<String>> {
    let ports = Ports::of(Who::Nginx);
    let (certificate, key) = (setup.certificate.0.display(), setup.certificate.1.display());
    let log = if setup.log {
        format!("access_log {}/access.log;\n", setup.dir.display())
    } else {
        "access_log off;\n".into()
    };
    let mut http = format!(
        "{log}server_names_hash_max_size 65536; server_names_hash_bucket_size 128;\n\
         upstream web {{ server 127.0.0.1:{}; keepalive 256; keepalive_requests 1000000000; }}\n\
         upstream grpc {{ server 127.0.0.1:{}; keepalive 256; keepalive_requests 1000000000; }}\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
         proxy_buffers 8 16k; proxy_buffer_size 16k; proxy_max_temp_file_size 0;\n\
         server {{ listen 127.0.0.1:{} http2; location / {{ grpc_pass grpc://grpc; }} }}\n",
        BACKEND.http, BACKEND.h2c, ports.h2c,
    );
    let listen = format!(
        "listen 127.0.0.1:{}; listen 127.0.0.1:{} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};",
        ports.http, ports.https
    );
    let all = setup.routes.all();
    let per_server = match setup.routes {
        Routes::Hosts(_, paths) => paths,
        _ => all.len(),
    };
    for server in all.chunks(per_server) {
        let name = server.first().and_then(|(host, _)| host.clone()).unwrap_or_else(|| "_".into());
        let _ = write!(http, "server {{ {listen} server_name {name};");
        for (_, path) in server {
            let _ = write!(http, " location {path} {{ proxy_pass http://web; }}");
        }
        http.push_str(" }\n");
    }
    command(setup, "nginx.conf", &main_block(setup.dir, setup.workers, &http))
}

/// The backend of the gateway scenarios.
pub(super) fn backend(setup: &Setup<'_>) -> Result<Vec<String>> {
    write_files(setup.dir)?;
    let http = format!(
        "access_log off;\nserver {{ listen 127.0.0.1:{} backlog=4096; listen 127.0.0.1:{} ssl http2;\n\
         ssl_certificate {}; ssl_certificate_key {};\n{}}}\n",
        BACKEND.http,
        BACKEND.https,
        setup.certificate.0.display(),
        setup.certificate.1.display(),
        locations(setup.dir),
    );
    command(setup, "backend.conf", &main_block(setup.dir, setup.workers, &http))
}

/// A server of the same files for a pod: its command line.
///
/// # Errors
/// File system.
pub(in crate::bench) fn file_server(dir: &Path, port: u16) -> Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    write_files(dir)?;
    let server = format!("access_log off;\nserver {{ listen {port} backlog=4096;\n{}}}\n", locations(dir));
    let path = dir.join("nginx.conf");
    fs::write(&path, main_block(dir, 1, &server))?;
    let (dir, path) = (dir.to_str().context("path")?, path.to_str().context("path")?);
    Ok(argv(&["nginx", "-p", dir, "-e", "error.log", "-c", path]))
}

fn write_files(dir: &Path) -> Result<()> {
    for (name, size) in [("1k", 1024), ("64k", 64 * 1024)] {
        fs::write(dir.join(name), vec![b'x'; size])?;
    }
    Ok(())
}

fn locations(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "location = /1k {{ root {dir}; }} location = /64k {{ root {dir}; }} location / {{ return 200 '{}'; }}\n",
        "x".repeat(128)
    )
}
