"""What several tests share. No test module imports another one."""
