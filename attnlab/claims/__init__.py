"""Published claims as experiments whose criteria are written down before they are run."""
