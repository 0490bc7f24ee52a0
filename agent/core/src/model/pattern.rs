//! Regular expressions of routes.
//!
//! Anybody who may write a route may write patterns, and a short text can ask for a large program: `\pL{1,6}` is 90 KiB. So a
//! [`Pattern`] of a route is a text at first; resolution compiles it when the route has a parent of ours and its budgets
//! allow it ([`crate::budget::PATTERN`]). Programs are automata that need no memory of their own while they run: what a
//! search needs is a thread's, and the same for all programs.

use super::Str;
use crate::budget::{self, PATTERN};
use regex_automata::{
    Anchored, Input,
    nfa::thompson::{
        Compiler, NFA, WhichCaptures,
        backtrack::{self, BoundedBacktracker},
        pikevm::{self, PikeVM},
    },
    util::syntax,
};
use std::{cell::RefCell, fmt, sync::Arc};

/// What a search by backtracking may remember, in bytes of one thread; longer values are searched without.
const VISITED: usize = 64 << 10;

/// A regular expression of the `regex` crate's dialect, which must match a whole value. Equal when its text is.
#[derive(Clone)]
pub struct Pattern {
    source: Str,
    program: State,
}

#[derive(Clone)]
enum State {
    /// Not compiled: whatever it stands in fails.
    Unread,
    Ready(Arc<Program>),
    /// What it asks for cannot be known: it holds for every request, so that none of those that it was written for goes
    /// somewhere else.
    Broken,
}

/// A compiled regular expression, anchored at both ends.
pub struct Program {
    fast: BoundedBacktracker,
    /// For what is too long for the other.
    any: PikeVM,
    size: usize,
}

impl Program {
    /// Compiles.
    ///
    /// # Errors
    /// In one line: syntax, an unsupported feature (look-around, back-references), or a program larger than [`PATTERN`].
    pub fn new(source: &str) -> Result<Self, String> {
        let config = syntax::Config::new().utf8(false);
        // The message is several lines with a marker; its last line says what is wrong.
        let short = |e: String| {
            let last = e.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("").trim();
            format!("not a valid regular expression: {}", last.strip_prefix("error: ").unwrap_or(last))
        };
        // A pattern such as `a)|(b` would close the group below: it is read alone too.
        syntax::parse_with(source, &config).map_err(|e| short(e.to_string()))?;
        let whole = format!("^(?:{source})$");
        let whole = syntax::parse_with(&whole, &config).map_err(|e| short(e.to_string()))?;
        let limits = NFA::config()
            .utf8(false)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(PATTERN.size()));
        let nfa = Compiler::new().configure(limits).build_from_hir(&whole).map_err(|_| {
            format!(
                "compiles to more than {}, the budget {} of each; [a-z] and (?-u:\\w) are smaller than \\pL and \\w",
                budget::amount(&PATTERN),
                PATTERN.name
            )
        })?;
        let size = nfa.memory_usage();
        let engine = |e: String| format!("not a valid regular expression: {e}");
        let fast = BoundedBacktracker::builder()
            .configure(backtrack::Config::new().visited_capacity(VISITED))
            .build_from_nfa(nfa.clone())
            .map_err(|e| engine(e.to_string()))?;
        let any = PikeVM::builder().build_from_nfa(nfa).map_err(|e| engine(e.to_string()))?;
        Ok(Self { fast, any, size })
    }

    /// Bytes that it takes.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    fn is_match(&self, value: &[u8]) -> bool {
        let input = Input::new(value).anchored(Anchored::Yes).earliest(true);
        if value.len() <= self.fast.max_haystack_len() {
            return FAST.with_borrow_mut(|cache| {
                let cache = cache.get_or_insert_with(|| self.fast.create_cache());
                cache.reset(&self.fast);
                self.fast.try_search_slots(cache, &input, &mut []).is_ok_and(|found| found.is_some())
            });
        }
        ANY.with_borrow_mut(|cache| {
            let cache = cache.get_or_insert_with(|| self.any.create_cache());
            cache.reset(&self.any);
            self.any.search_slots(cache, &input, &mut []).is_some()
        })
    }
}

thread_local! {
    // One for all programs: a cache for each pattern, as a Regex has, would be memory that grows with patterns.
    static FAST: RefCell<Option<backtrack::Cache>> = const { RefCell::new(None) };
    static ANY: RefCell<Option<pikevm::Cache>> = const { RefCell::new(None) };
}

impl Pattern {
    /// A compiled pattern.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub fn new(source: &str) -> Result<Self, String> {
        Ok(Self { source: source.into(), program: State::Ready(Arc::new(Program::new(source)?)) })
    }

    /// A pattern as it is written, right or not. Until it is compiled it holds for every value.
    #[must_use]
    pub fn unread(source: Str) -> Self {
        Self { source, program: State::Unread }
    }

    /// What stands where a criterion cannot be known: it holds for every request.
    #[must_use]
    pub const fn broken(source: Str) -> Self {
        Self { source, program: State::Broken }
    }

    /// The same pattern with its program, or with none because there is something wrong with it. One that has been read
    /// before stays as it is.
    #[must_use]
    pub fn with(&self, program: Option<Arc<Program>>) -> Self {
        if !self.is_unread() {
            return self.clone();
        }
        let program = program.map_or(State::Broken, State::Ready);
        Self { source: self.source.clone(), program }
    }

    /// Whether it is still to be compiled.
    #[must_use]
    pub const fn is_unread(&self) -> bool {
        matches!(self.program, State::Unread)
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Its text, shared.
    #[must_use]
    pub const fn source(&self) -> &Str {
        &self.source
    }

    /// Whether what it asks for is not known: it holds for every request.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        !matches!(self.program, State::Ready(_))
    }

    /// Whether the whole of `value` matches.
    #[must_use]
    pub fn is_match(&self, value: &[u8]) -> bool {
        match &self.program {
            State::Ready(program) => program.is_match(value),
            State::Unread | State::Broken => true,
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broken = if self.is_broken() { " (broken)" } else { "" };
        write!(f, "Pattern({:?}{broken})", self.source)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({} bytes)", self.size)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_value() {
        let check = |pattern: &str, value: &str, want: bool| {
            let pattern = Pattern::new(pattern).expect("a pattern");
            assert_eq!(pattern.is_match(value.as_bytes()), want, "{pattern:?} {value}");
            // And so without the memory of the faster search.
            let State::Ready(program) = &pattern.program else { panic!("compiled") };
            let long = vec![b'x'; program.fast.max_haystack_len() + 1];
            assert_eq!(
                pattern.is_match(&long),
                [".*", "x*", r"\w+"].contains(&pattern.as_str()),
                "{pattern:?}"
            );
        };
        check("a|b", "b", true);
        check("a|b", "ab", false);
        check(".*", "", true);
        check("x*", "xxx", true);
        check("/v[0-9]+/.*", "/v12/x", true);
        check("/v[0-9]+/.*", " /v12/x", false);
        check("(?i)ABC", "abc", true);
        check(r"\w+", "grün", true);
        check("a$|b", "a", true);
        assert!(!Pattern::new(".").expect("a pattern").is_match("\n".as_bytes()));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (pattern, want) in [
            ("a)|(b", "not a valid regular expression: unopened group"),
            ("(", "not a valid regular expression: unclosed group"),
            (
                "(?=a)",
                "not a valid regular expression: look-around, including look-ahead and look-behind, is not supported",
            ),
            (
                r"\pL{1,6}",
                "compiles to more than 64 KiB, the budget pattern of each; [a-z] and (?-u:\\w) are smaller than \\pL and \\w",
            ),
            (
                "(a{1000}){1000}",
                "compiles to more than 64 KiB, the budget pattern of each; [a-z] and (?-u:\\w) are smaller than \\pL and \\w",
            ),
        ] {
            assert_eq!(Pattern::new(pattern).expect_err(pattern), want, "{pattern}");
        }
    }
}
