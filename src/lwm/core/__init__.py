"""What everything stands on: the mesh, declared parameters, the id space, the batch, the token layouts."""
