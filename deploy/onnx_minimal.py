"""Run an exported ONNX model with onnxruntime alone: python onnx_minimal.py MODEL.onnx FRAME.png MASK.png"""

import json
import sys

import cv2
import onnxruntime

model, frame_path, mask_path = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
info = json.loads(session.get_modelmeta().custom_metadata_map["edge_sfda"])
height, width = info["frame_size"] or cv2.imread(frame_path).shape[:2]
frame = cv2.resize(cv2.imread(frame_path), (width, height))[..., :: 1 if info["colour_order"] == "bgr" else -1]
(mask,) = session.run(["mask"], {"frame": frame[None]})  # uint8 [1, H, W, 3] in, uint8 [1, H, W] of class ids out
cv2.imwrite(mask_path, mask[0])
print({name: float((mask == i).mean().round(3)) for i, name in enumerate(info["classes"]["names"])})
