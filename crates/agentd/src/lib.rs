//! PID 1 of every microsandbox guest.
