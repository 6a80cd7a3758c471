// Exists to compile the precompiled header that the LibTorch rooms reuse.
