"""Many runs, one question: `advdistill study`. Planned without torch; the engine trains and measures every cell."""
