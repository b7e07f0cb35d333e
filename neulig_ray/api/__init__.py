"""What Python and notebooks use of neulig: the functions and classes behind `import neulig_ray as nl`."""
