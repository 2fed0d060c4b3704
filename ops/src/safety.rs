//! Questions before changes that someone would notice.
//!
//! They protect a person at a terminal from the wrong line. A script has said
//! what it means: it names exactly what it acts on, and is never asked.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::error::{self, Error, Result};

/// Asks whether to go on, where someone is there to answer.
///
/// # Errors
/// [`Error::Declined`] where the answer is not yes.
pub fn confirm(question: &str, no_input: bool) -> Result<()> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if no_input || !terminal {
        return Ok(());
    }
    ask(question, &mut io::stdin().lock(), &mut io::stderr())
}

fn ask(question: &str, answers: &mut impl BufRead, screen: &mut impl Write) -> Result<()> {
    write!(screen, "{question} [y/N] ")
        .and_then(|()| screen.flush())
        .map_err(error::io("ask"))?;
    let mut answer = String::new();
    answers
        .read_line(&mut answer)
        .map_err(error::io("read the answer"))?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Error::Declined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(answer: &str) -> bool {
        ask("Go on?", &mut answer.as_bytes(), &mut Vec::new()).is_ok()
    }

    #[test]
    fn only_yes_goes_on() {
        assert!(answered("y\n"));
        assert!(answered(" YES \n"));
        assert!(!answered("\n"));
        assert!(!answered("n\n"));
        // End of input.
        assert!(!answered(""));
    }
}
