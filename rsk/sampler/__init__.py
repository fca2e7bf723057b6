"""The sampler: the public functions and their backends, random words, the build, the emulator."""
