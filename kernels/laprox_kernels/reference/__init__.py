"""Plain torch versions: what every other version is compared with, and what runs on a CPU."""
