"""Plans and runs programs under a precision policy."""
