"""Published claims as pre-registered experiments: their criteria are fixed before they are run."""
