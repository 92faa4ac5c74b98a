"""Learning from rewards: rollouts, advantages, and one clipped objective."""
