//! Finding the rule for a request: the index that must agree with the specification's sorted list.
//!
//! ```text
//! host ─▶ HostMap: exact hash, else reversed-label trie, else "any host"   (most specific first, falling through)
//!          └▶ path ─▶ gRPC hashes ─▶ exact hash ─▶ segment trie ─▶ regexes ─▶ catch-all
//!                      └▶ leaf: the few entries of one (host, path), sorted by precedence: method, headers, query
//! ```
//!
//! Precedence ([`RouteTable`] sorts by it once; the first hit wins):
//! 1. hostname: exact, then the longest wildcard, then none. Host is the first key and not a filter: when no rule of
//!    the exact host matches, the wildcard's are asked, then those without a hostname;
//! 2. path: gRPC service and method (the longer, the earlier; exact before pattern), Exact, the longest Prefix,
//!    RegularExpression (the longest pattern), and the catch-all `/` at the very end. The API leaves open where
//!    patterns stand; before `/`, or a pattern beside a default rule would never match;
//! 3. a method, then the number of header matches, then of query matches;
//! 4. the oldest route, `namespace/name`, the first rule, the first match.
//!
//! What is compared:
//! - **host**: lower case, without port and trailing dot ([`host_of`]);
//! - **path**: case-sensitive, as [`crate::message::normal_path`] writes it: the caller forwards what was matched, so
//!   `/public/../admin` and `/%61dmin` meet the rules of `/admin`, and no backend sees anything else. A table whose rules
//!   ask for no path ([`RouteTable::reads_paths`]) needs none of that. `/a%2Fb` is one segment. Empty segments count: `/a//b`
//!   is matched by the prefix `/a`, not by `/a/b`. The values of rules are written in the same way;
//! - **header**: `Host` is the authority, in HTTP/2 too; else all lines of a name joined by `,` (RFC 9110 §5.3), cookies by `; ` (RFC 9113 §8.2.3);
//! - **query**: the first parameter of the name, `+` and `%xx` decoded; one without `=` is the empty value.
//!
//! Nothing here allocates for a request, but for patterns on repeated headers and encoded query values.

mod authority;
mod condition;
mod grpc;
mod host;
mod path;
mod precedence;
mod table;
mod trie;
mod words;

pub use authority::{host_of, split_port};
pub use host::HostMap;
pub use table::{Entry, Order, RequestHead, RouteTable, Selected, Shadowed};

#[cfg(test)]
mod tests;
