//! HAProxy.

use super::{BACKEND, Ports, Routes, Setup, Who};
use crate::bench::place::argv;
use anyhow::{Context as _, Result};
use std::{fmt::Write as _, fs};

pub(super) fn prepare(setup: &Setup<'_>) -> Result<Vec<String>> {
    let ports = Ports::of(Who::Haproxy);
    // It wants certificate and key in one file.
    let pem = [fs::read_to_string(setup.certificate.0)?, fs::read_to_string(setup.certificate.1)?].concat();
    let pem = setup.write("both.pem", &pem)?;
    let mut map = String::new();
    for (host, path) in setup.routes.all() {
        let _ = writeln!(map, "{}{path} web", host.unwrap_or_default());
    }
    let map = setup.write("routes.map", &map)?;
    let key = if matches!(setup.routes, Routes::Hosts(..)) { "base" } else { "path" };
    let (log, option) =
        if setup.log { ("log stdout format raw local0\n", "log global\noption httplog\n") } else { ("", "") };
    let text = format!(
        "global\nnbthread {workers}\nmaxconn 9000\n{log}\
         ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\ntune.ssl.cachesize 0\n\
         defaults\nmode http\n{option}timeout connect 5s\ntimeout client 600s\ntimeout server 600s\n\
         timeout http-keep-alive 600s\nhttp-reuse always\n\
         frontend edge\nbind 127.0.0.1:{http}\nbind 127.0.0.1:{https} ssl crt {pem} alpn h2,http/1.1\n\
         use_backend %[{key},map_beg({map})]\n\
         frontend h2c\nbind 127.0.0.1:{h2c} proto h2\ndefault_backend grpc\n\
         backend web\nserver s 127.0.0.1:{web}\nbackend grpc\nserver s 127.0.0.1:{grpc} proto h2\n",
        workers = setup.workers,
        http = ports.http,
        https = ports.https,
        h2c = ports.h2c,
        pem = pem.display(),
        map = map.display(),
        web = BACKEND.http,
        grpc = BACKEND.h2c,
    );
    let path = setup.write("haproxy.cfg", &text)?;
    Ok(argv(&["haproxy", "-db", "-f", path.to_str().context("path")?]))
}
