//! What people see: colour only on a terminal, progress apart from results.

use super::args::Output;
use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
};

/// Prints lines, marks and tables.
pub(super) struct Show {
    colour: bool,
    output: Output,
}

/// How good a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Fine.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Neither.
    Plain,
}

impl Show {
    pub(super) fn new(output: Output) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour: terminal && output == Output::Table, output }
    }

    /// Whether a program reads along.
    pub(super) fn json(&self) -> bool {
        self.output == Output::Json
    }

    /// A line of progress.
    pub(super) fn line(&self, mark: Mark, text: &str) {
        let line = format!("{} {text}", self.sign(mark));
        // Where a program reads the result, people's lines go past it.
        if self.json() { err(line) } else { out(line) }
    }

    /// A line without a mark.
    pub(super) fn plain(&self, text: &str) {
        if self.json() { err(text) } else { out(text) }
    }

    /// The result for a program.
    pub(super) fn result(&self, value: &serde_json::Value) {
        if self.json() {
            out(format_args!("{value:#}"));
        }
    }

    /// A heading.
    pub(super) fn title(&self, text: &str) {
        self.plain(&self.paint("1", text));
    }

    /// ✔ ! ✘ or nothing.
    pub(super) fn sign(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => self.paint("32", "✔"),
            Mark::Warn => self.paint("33", "!"),
            Mark::Bad => self.paint("31", "✘"),
            Mark::Plain => " ".into(),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A line on standard output. Nobody may be reading any more (`| head`): what is being done goes on all the same, and ends
/// quietly.
pub(super) fn out(line: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

fn err(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Columns as wide as their widest cell; the last one as it is. The first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            match widths.get_mut(column) {
                Some(width) => *width = (*width).max(cell.chars().count()),
                None => widths.push(cell.chars().count()),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `3 pods`, `1 pod`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tails() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let text = table(&[row(&["NODE", "READY"]), row(&["a-long-name", "yes"]), row(&["b", ""])]);
        assert_eq!(text, "  NODE         READY\n  a-long-name  yes\n  b\n");
    }
}
