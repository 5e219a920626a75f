#!/usr/bin/env python3
"""Times other programs of today beside samlad: the same weights, the same picture, in turns.

    python3 tools/bench_peers.py --segment-anything PATH --mobile-sam PATH --dinov2 PATH [--samlad ./samlad] [--quick] [--json]

Works    sam_vit_b.encoder    Segment Anything's ViT-B image encoder at 1024 x 1024
         sam_vit_b.masks      its automatic masks without the encoder
         mobile_sam.encoder   MobileSAM's image encoder, a TinyViT, at 1024 x 1024
         dinov2_s.518         DINOv2 ViT-S/14 at 518 x 518
Peers    pytorch              the official code, unchanged
         pytorch, malloc      the same with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 8 GiB, so that
                              freed activations are not given back to the system (glibc)
         onnxruntime          the encoders, and prompt encoder with mask decoder, exported from the official code;
                              when Python can import onnxruntime, or Node.js has onnxruntime-node
                              (npm install onnxruntime-node --ignore-scripts; --onnxruntime-node its node_modules)

PATHs are checkouts of facebookresearch/segment-anything, ChaoningZhang/MobileSAM (which needs the former too) and
facebookresearch/dinov2. The weights are random. The official classes make them, and a temporary safetensors file
passes them to samlad. Each peer runs in its own process, one after the other, --rounds times. The table shows
medians, and peer/samlad: how many times faster samlad is. OMP_NUM_THREADS sets the threads of all of them. An old
OpenBLAS of PyTorch may not know the processor; OPENBLAS_CORETYPE names a kind that it knows. This program says so.

The peers decode one batch of 64 points, samlad all 1,024; the batch counts 16-fold. ONNX Runtime only decodes: the
official generator's later steps, in Python, are not counted. The threshold of the predicted IoU lets a third of the
masks pass. The required stability is low, because random masks are ragged. The outputs are compared: features by
the largest difference over the largest value, masks by their boxes (ONNX Runtime's by the predicted IoUs). Exits
with 1 when they disagree. Needs torch, torchvision and numpy.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests"))
EIGHT_GIB = str(8 << 30)
WORKS = ("sam_vit_b.encoder", "sam_vit_b.masks", "mobile_sam.encoder", "dinov2_s.518")
TOLERANCE = 1e-3  # of features of random networks 12 blocks deep
POINTS_PER_SIDE, BATCHES = 8, 16  # 64 of 32 x 32 points
STABILITY, BOX_NMS = 0.5, 1.0  # keeps many masks of a random network for the comparison


# ---- the official models ---------------------------------------------------------------------------------

def sam_metadata(work):
    from make_golden_sam import describe, describe_mobile
    if work == "mobile_sam.encoder":
        return describe_mobile(1024, 320, 256, 16, 2, 2048, 8, 2, 3, 3, 256)
    dim, depth, heads, blocks = (768, 12, 12, "2,5,8,11") if work == "sam_vit_b.encoder" else (64, 1, 1, "")
    return describe(1024, 16, dim, depth, heads, 4.0, 14, blocks, 256, 16, 2, 2048, 8, 2, 3, 3, 256)


def sam_model(work):
    """The masks' model has an encoder that costs almost nothing."""
    import torch
    from make_golden_sam import build, build_mobile, randomise
    mobile = work == "mobile_sam.encoder"
    model = build_mobile(os.environ["MOBILE_SAM"], sam_metadata(work)) if mobile else build(sam_metadata(work))
    randomise(model, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():  # trained networks keep their activations' size
            if p.dim() > 1 and "blocks" in name and "rel_pos" not in name:
                p.mul_(0.7)
    return model


def dinov2_model():
    import torch
    from make_golden_vit import attention_of_old_torch, randomise
    attention_of_old_torch()
    torch.manual_seed(1)
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer
    model = DinoVisionTransformer(
        img_size=518, patch_size=14, embed_dim=384, depth=12, num_heads=6, mlp_ratio=4, init_values=1.0,
        ffn_layer="mlp", block_chunks=0, block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention)).eval()
    randomise(model)
    return model


def save_weights(work, path):
    import numpy as np
    from make_golden_sam import save
    if work == "dinov2_s.518":
        from make_golden_vit import config
        model, metadata = dinov2_model(), config("dinov2", 518, 14, 384, 12, 6)
    else:
        model, metadata = sam_model(work), sam_metadata(work)
    tensors = {k: v.numpy().astype(np.float32) for k, v in model.state_dict().items()
               if not k.endswith("num_batches_tracked")}
    stdout, sys.stdout = sys.stdout, sys.stderr
    save(path, tensors, metadata)
    sys.stdout = stdout


def load_weights(model, path):
    from golden_io import load_torch
    missing, unexpected = model.load_state_dict(load_torch(path)[0], strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing), (missing, unexpected)
    return model.train().eval()  # a TinyViT gathers its attention biases on the way


def picture(size):
    from make_golden_sam import picture as draw
    return draw(size, size, 1)


# ---- workers: a process that prepares a work, then runs it on request -------------------------

def encoder_input(work):
    import torch
    size = 518 if work == "dinov2_s.518" else 1024
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if size == 518 else \
                ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    pixels = torch.from_numpy(picture(size)).permute(2, 0, 1).float() / (255.0 if size == 518 else 1.0)
    return ((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None].contiguous()


def encoder_module(work, weights):
    """A module: pixels -> the tensor that samlad dumps: tokens [1 + n][dim], or the embedding [h][w][channels]."""
    import torch

    class Tokens(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            f = self.model.forward_features(x)
            return torch.cat([f["x_norm_clstoken"][:, None], f["x_norm_patchtokens"]], 1)

    class Embedding(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model.image_encoder

        def forward(self, x):
            return self.model(x).permute(0, 2, 3, 1)

    if work == "dinov2_s.518":
        return Tokens(load_weights(dinov2_model(), weights)).eval()
    return Embedding(load_weights(sam_model(work), weights)).eval()


def torch_encoder(work, weights):
    import torch
    module, pixels = encoder_module(work, weights), encoder_input(work)

    def run():
        with torch.no_grad():
            return module(pixels)
    return run, lambda result, out: result[0].contiguous().numpy().tofile(out)


def onnx_export(work, weights):
    """-> the exported file and its input. For the masks: points [64][1][2] on 1024 x 1024 -> IoUs [64][3], masks."""
    import torch
    if work == "sam_vit_b.masks":
        module, given = decoder_module(weights)
    else:
        module, given = encoder_module(work, weights), encoder_input(work)
    path = weights + ".onnx"
    with torch.no_grad():
        torch.onnx.export(module, given, path, input_names=["given"], opset_version=16)
    return path, given.numpy().astype("float32")


def decoder_module(weights):
    import torch
    model = load_weights(sam_model("sam_vit_b.masks"), weights).requires_grad_(False)
    generator = mask_generator(model)

    class Decoder(torch.nn.Module):
        """PromptEncoder for one foreground point each, and MaskDecoder, written so that PyTorch 1.13 can export it."""

        def __init__(self):
            super().__init__()
            encoder = model.prompt_encoder
            self.embedding, self.pe = generator.predictor.features, encoder.get_dense_pe()
            self.dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(self.embedding)
            self.encode, self.foreground = encoder.pe_layer._pe_encoding, encoder.point_embeddings[1].weight
            self.padding = encoder.not_a_point_embed.weight[None].expand(POINTS_PER_SIDE ** 2, -1, -1)
            self.decoder = model.mask_decoder

        def forward(self, points):
            tokens = torch.cat([self.encode((points + 0.5) / 1024) + self.foreground, self.padding], 1)
            masks, ious = self.decoder.predict_masks(self.embedding, self.pe, tokens, self.dense)
            return ious[:, 1:], masks[:, 1:]

    # The official decoder repeats the image for every prompt. PyTorch 1.13 cannot export that code.
    torch.repeat_interleave = lambda image, n, dim: image.expand(int(n), -1, -1, -1)
    return Decoder().eval(), predictor_points(generator.predictor, generator.point_grids[0] * 1024)[0]


def onnx_python(work, weights):
    import onnxruntime
    path, given = onnx_export(work, weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"given": given})  # its memory has settled after the second run only
    return lambda: session.run(None, {"given": given}), lambda result, out: result[0].astype("float32").tofile(out)


# The same worker in Node.js: arguments onnxruntime-node's folder, model, input, its shape, threads, output.
NODE = r"""
const [module, model, input, shape, threads, output] = process.argv.slice(1), fs = require('fs');
(async () => {
  const ort = require(module);
  const session = await ort.InferenceSession.create(model, {intraOpNumThreads: Number(threads)});
  const bytes = fs.readFileSync(input), values = new Float32Array(new Uint8Array(bytes).buffer);
  const feed = {given: new ort.Tensor('float32', values, JSON.parse(shape))};
  await session.run(feed); // its memory has settled after the second run only
  const first = (await session.run(feed))[session.outputNames[0]].data;
  fs.writeFileSync(output, new Uint8Array(first.buffer, first.byteOffset, first.byteLength));
  console.log('ready');
  for await (const line of require('readline').createInterface({input: process.stdin})) {
    const start = process.hrtime.bigint();
    await session.run(feed);
    console.log(Number(process.hrtime.bigint() - start) / 1e9);
  }
})();
"""


def onnx_node(arguments):
    """Exports, then becomes the Node.js worker."""
    path, given = onnx_export(arguments.work, arguments.weights)
    given.tofile(path + ".input")
    os.execvp("node", ["node", "-e", NODE, os.path.join(arguments.onnxruntime_node, "onnxruntime-node"), path,
                       path + ".input", json.dumps(given.shape), str(threads()), arguments.out])


def threads():
    import torch
    return torch.get_num_threads()


def mask_generator(model):
    """The official generator on 64 points; its encoder ran before."""
    from segment_anything import SamAutomaticMaskGenerator
    generator = SamAutomaticMaskGenerator(model, points_per_side=POINTS_PER_SIDE, stability_score_thresh=STABILITY,
                                          box_nms_thresh=BOX_NMS)
    predictor = generator.predictor
    predictor.set_image(picture(1024))
    predictor.set_image = lambda *arguments: None
    predictor.reset_image = lambda: None
    return generator


def torch_masks(weights):
    import numpy as np
    generator = mask_generator(load_weights(sam_model("sam_vit_b.masks"), weights))
    predictor, image = generator.predictor, picture(1024)
    points = generator.point_grids[0] * 1024
    _, ious, _ = predictor.predict_torch(
        *(predictor_points(predictor, points)), multimask_output=True, return_logits=True)
    generator.pred_iou_thresh = float(np.float32(np.quantile(ious.numpy(), 2 / 3)))

    def keep(result, out):
        boxes = sorted([*map(float, r["bbox"]), float(r["predicted_iou"])] for r in result)
        with open(out, "w") as f:
            json.dump({"threshold": generator.pred_iou_thresh, "boxes": boxes}, f)
    return lambda: generator.generate(image), keep


def predictor_points(predictor, points):
    import torch
    coordinates = torch.as_tensor(predictor.transform.apply_coords(points, (1024, 1024)), dtype=torch.float)
    return coordinates[:, None, :], torch.ones(len(points), 1, dtype=torch.int)


def warn_of_old_blas():
    """An OpenBLAS older than the processor uses the kernels of a Prescott, which need three times as long."""
    with open("/proc/self/maps") as maps, open("/proc/cpuinfo") as cpu:
        libraries = {line.split()[-1] for line in maps if "libopenblas" in line}
        flags = cpu.read().split()
    for library in libraries:
        core_name = ctypes.CDLL(library).openblas_get_corename
        core_name.restype = ctypes.c_char_p
        if core_name() == b"Prescott" and "avx2" in flags:
            print("bench_peers: OpenBLAS doesn't know this processor and computes as for a Prescott; set "
                  "OPENBLAS_CORETYPE=" + ("Cooperlake" if "avx512_bf16" in flags else
                                          "SkylakeX" if "avx512f" in flags else "Haswell"), file=sys.stderr)


def work_off(arguments):
    """The worker: says "ready", answers each line with the seconds of one run, keeps the last result in --out."""
    if arguments.worker == "onnxruntime" and arguments.onnxruntime_node:
        onnx_node(arguments)
    if arguments.worker == "onnxruntime":
        run, keep = onnx_python(arguments.work, arguments.weights)
    elif arguments.work == "sam_vit_b.masks":
        run, keep = torch_masks(arguments.weights)
    else:
        run, keep = torch_encoder(arguments.work, arguments.weights)
    result = run()  # warm up
    keep(result, arguments.out)
    if arguments.worker == "pytorch" and sys.platform == "linux":
        warn_of_old_blas()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def worker_environment(arguments):
    paths = (arguments.segment_anything, arguments.dinov2, os.environ.get("PYTHONPATH"))
    return dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in paths if p), XFORMERS_DISABLED="1",
                MOBILE_SAM=arguments.mobile_sam or "")


class Worker:
    def __init__(self, arguments, peer, work, weights, folder):
        environment = worker_environment(arguments)
        if peer == "pytorch, malloc":
            environment.update(MALLOC_MMAP_THRESHOLD_=EIGHT_GIB, MALLOC_TRIM_THRESHOLD_=EIGHT_GIB)
        self.out = os.path.join(folder, f"{work}.{peer.replace(', ', '_')}.out")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--worker", peer, "--work", work,
             "--weights", weights, "--out", self.out] +
            (["--onnxruntime-node", arguments.onnxruntime_node] if arguments.onnxruntime_node else []),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.answer("ready")

    def answer(self, expected=None):
        for line in self.process.stdout:
            if expected is None or line.strip() == expected:
                return line.strip()
        raise SystemExit(f"bench_peers: a worker ended early (status {self.process.wait()})")

    def run(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self.answer())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- samlad ----------------------------------------------------------------------------------------------

class Samlad:
    def __init__(self, arguments, work, weights, image, folder):
        name = "sam_vit_b.masks_1024" if work == "sam_vit_b.masks" else work
        self.dump, self.threshold = os.path.join(folder, work + ".samlad.safetensors"), None
        self.command = [arguments.samlad, "bench", "--only", name, "--runs", "1", "--json", "--image", image,
                        "--backbone" if work == "dinov2_s.518" else "--sam", weights]
        self.segment = [arguments.samlad, "segment", "--sam", weights, "--points", str(POINTS_PER_SIDE),
                        "-o", os.path.join(folder, "samlad"), image]
        stem = os.path.splitext(os.path.basename(image))[0]
        self.records = os.path.join(folder, "samlad", stem + "_masks.json")

    def run(self):
        answer = subprocess.run(self.command + self.thresholds() + ["--dump", self.dump], check=True,
                                stdout=subprocess.PIPE)
        return json.loads(answer.stdout)[0]["seconds"]

    def thresholds(self):
        if self.threshold is None:
            return []
        return ["--pred-iou-thresh", repr(self.threshold), "--stability-score-thresh", str(STABILITY)]

    def boxes(self):
        subprocess.run(self.segment + self.thresholds() + ["--box-nms-thresh", str(BOX_NMS)], check=True,
                       stdout=subprocess.DEVNULL)
        with open(self.records) as f:
            records = json.load(f)
        records = records if isinstance(records, list) else records["masks"]
        return sorted([*map(float, r["bbox"]), float(r["predicted_iou"])] for r in records)


def feature_difference(samlad, out):
    import numpy as np
    from golden_io import load_torch
    ours = next(iter(load_torch(samlad.dump)[0].values())).numpy().ravel()
    theirs = np.fromfile(out, np.float32)
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def box_difference(samlad, out):
    """Share of the masks without an equal: the same box within a pixel, the same predicted IoU within 1e-3."""
    import numpy as np
    with open(out) as f:
        theirs = json.load(f)["boxes"]
    ours = samlad.boxes()
    print(f"masks compared: {len(ours)} of samlad, {len(theirs)} of the peer", file=sys.stderr)
    if not ours or not theirs:
        return 1.0  # nothing was compared
    a, b = np.array(ours), np.array(theirs)
    equal = (np.abs(a[:, None] - b[None]) <= np.array([1, 1, 1, 1, 1e-3])).all(-1)
    return float(1 - (equal.any(1).sum() + equal.any(0).sum()) / (len(a) + len(b)))


def iou_difference(samlad, out):
    """Share of samlad's masks whose predicted IoU is not among the decoder's, within 1e-4."""
    import numpy as np
    theirs, ours = np.fromfile(out, np.float32), np.array(samlad.boxes(), dtype=np.float64).reshape(-1, 5)[:, 4]
    if not len(ours) or not len(theirs):
        return 1.0
    return float((np.abs(ours[:, None] - theirs[None]).min(1) > 1e-4).mean())


# ---- the comparison --------------------------------------------------------------------------------------

def has_onnxruntime(arguments):
    if arguments.onnxruntime_node:
        return True
    return subprocess.run([sys.executable, "-c", "import onnxruntime"], stderr=subprocess.DEVNULL).returncode == 0


def compare(arguments, work, folder, image):
    weights = os.path.join(folder, work + ".safetensors")
    subprocess.run([sys.executable, "-W", "ignore", os.path.abspath(__file__), "--worker", "weights", "--work", work,
                    "--weights", weights], check=True, stdout=sys.stderr,
                   env=worker_environment(arguments))
    peers = ["pytorch", "pytorch, malloc"]
    absent = []
    (peers if has_onnxruntime(arguments) else absent).append("onnxruntime")
    samlad = Samlad(arguments, work, weights, image, folder)
    seconds = {"samlad": [], **{p: [] for p in peers}}
    differences = {}
    workers = {p: Worker(arguments, p, work, weights, folder) for p in peers}
    if work == "sam_vit_b.masks":
        with open(workers["pytorch"].out) as f:
            samlad.threshold = json.load(f)["threshold"]
    for _ in range(arguments.rounds):
        seconds["samlad"].append(samlad.run())
        for peer, worker in workers.items():
            seconds[peer].append(worker.run() * (BATCHES if work == "sam_vit_b.masks" else 1))
    for peer, worker in workers.items():
        worker.close()
        masks = iou_difference if peer == "onnxruntime" else box_difference
        differences[peer] = (masks if work == "sam_vit_b.masks" else feature_difference)(samlad, worker.out)
    ours = statistics.median(seconds["samlad"])
    rows = [{"work": work, "peer": "samlad", "seconds": ours, "ratio": 1.0, "difference": 0.0}]
    for peer in peers:
        ratios = [t / s for t, s in zip(seconds[peer], seconds["samlad"])]
        rows.append({"work": work, "peer": peer, "seconds": statistics.median(seconds[peer]),
                     "ratio": statistics.median(ratios), "difference": differences[peer]})
    rows += [{"work": work, "peer": peer, "seconds": None, "ratio": None, "difference": None} for peer in absent]
    return rows


def agree(row):
    limit = 0.02 if row["work"] == "sam_vit_b.masks" else TOLERANCE
    return row["difference"] is None or row["difference"] <= limit


def print_rows(rows):
    for row in rows:
        if row["seconds"] is None:
            print(f"{row['work']:20} {row['peer']:16} not installed")
        else:
            print(f"{row['work']:20} {row['peer']:16} {row['seconds']:9.3f} s {row['ratio']:8.2f} x   difference "
                  f"{row['difference']:.1e}{'' if agree(row) else '  DISAGREES'}", flush=True)


def write_ppm(path, rgb):
    with open(path, "wb") as f:
        f.write(b"P6\n%d %d\n255\n" % (rgb.shape[1], rgb.shape[0]) + rgb.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samlad", default="./samlad", help="the command (default ./samlad)")
    parser.add_argument("--segment-anything", metavar="PATH", help="a checkout; without it, no SAM")
    parser.add_argument("--mobile-sam", metavar="PATH", help="a checkout; without it, no MobileSAM")
    parser.add_argument("--dinov2", metavar="PATH", help="a checkout; without it, no DINOv2")
    parser.add_argument("--onnxruntime-node", metavar="PATH", help="the node_modules with onnxruntime-node")
    parser.add_argument("--only", action="append", choices=WORKS, help="this work (may be given several times)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true", help="an array of objects instead of the table")
    for hidden in ("--worker", "--work", "--weights", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "weights":
        return save_weights(arguments.work, arguments.weights)
    if arguments.worker:
        return work_off(arguments)
    if not arguments.segment_anything and not arguments.dinov2:
        parser.error("--segment-anything or --dinov2 is needed")
    for name in ("segment_anything", "mobile_sam", "dinov2"):
        path = getattr(arguments, name)
        if path and not os.path.isdir(os.path.join(path, name)):
            parser.error(f"{path} is no checkout with a folder {name}")
        setattr(arguments, name, path and os.path.abspath(path))
    if arguments.onnxruntime_node:
        arguments.onnxruntime_node = os.path.abspath(arguments.onnxruntime_node)
        if not os.path.isdir(os.path.join(arguments.onnxruntime_node, "onnxruntime-node")):
            parser.error(f"{arguments.onnxruntime_node} holds no onnxruntime-node")
    arguments.rounds = 1 if arguments.quick else max(arguments.rounds, 1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="samlad_peers.") as folder:
        for work in arguments.only or WORKS:
            checkouts = [arguments.dinov2] if work.startswith("dinov2") else [arguments.segment_anything]
            if not all(checkouts + [arguments.mobile_sam] * work.startswith("mobile_sam")):
                continue
            image = os.path.join(folder, work + ".ppm")
            write_ppm(image, picture(518 if work.startswith("dinov2") else 1024))
            rows += compare(arguments, work, folder, image)
            if not arguments.json:
                print_rows([r for r in rows if r["work"] == work])
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(agree(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
