"""`neulig ls`: what there is, with what each needs."""
