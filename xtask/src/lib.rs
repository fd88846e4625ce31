//! headgate.
