//! Teardown tries everything and reports all of it.

use std::fmt;

/// Every error of a teardown. Never empty when it is returned.
#[derive(Debug)]
pub struct ErrorList<E>(Vec<E>);

impl<E> ErrorList<E> {
    /// Keeps the errors of `results`; `Ok` when there are none.
    ///
    /// # Errors
    /// The errors, in order.
    pub fn collect(results: impl IntoIterator<Item = Result<(), E>>) -> Result<(), Self> {
        let errors: Vec<E> = results.into_iter().filter_map(Result::err).collect();
        if errors.is_empty() { Ok(()) } else { Err(Self(errors)) }
    }
}

impl<E: fmt::Display> fmt::Display for ErrorList<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for ErrorList<E> {}
