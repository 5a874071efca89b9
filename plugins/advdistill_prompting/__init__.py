"""Adversarial prompt tuning: prompts learned on adversarial images, without a teacher or against the frozen CLIP."""
