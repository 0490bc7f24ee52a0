//! E14: `weft status | head` ended with a panic. Nobody reads any more: that is no error of the command's.

use anyhow::{Result, ensure};
use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};
use weft_tests::weft_binary;

#[test]
fn output_whose_reader_is_gone_ends_quietly() -> Result<()> {
    // Much more than a pipe holds, and no cluster needed.
    for output in ["table", "json"] {
        let mut command = Command::new(weft_binary()?);
        command.args(["install", "--dry-run", "--addon", "jaeger", "-o", output]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::with_capacity(16, child.stdout.take().expect("it is piped")).read_line(&mut first)?;
        let ended = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(
            !first.is_empty() && ended.status.success() && said.is_empty(),
            "{output}: {}: {said}",
            ended.status
        );
    }
    Ok(())
}
