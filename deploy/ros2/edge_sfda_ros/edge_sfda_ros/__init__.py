"""An ament package around `edge_sfda.live.ros`."""
