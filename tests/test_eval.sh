#!/bin/sh
# test_eval.sh - samlad eval from outside: data sets in every layout, and their problems. Runs that are killed, shared
# between processes, continued with other settings. Tiny images and small random weights (as in test_cli.sh).

. "$(dirname "$0")/shell.sh"
bin=${SAMLAD_BIN:-$here/../build/samlad}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
cd "$dir" || exit 1
weights="--backbone $here/golden/vit_timm_model.safetensors --sam $here/golden/sam_resampled_model.safetensors --featup none"
small_run="$weights --no-objects 1 --size 32"
small="$small_run --no-pictures"

# expect STATUS NAME COMMAND...
expect() {
    want=$1 name=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    if [ $got -ne "$want" ]; then
        bad "$name: status $got, expected $want"
    elif [ "$want" -eq 0 ] && [ -s err ]; then
        bad "$name: something on stderr"
    elif [ "$want" -ne 0 ] && { [ ! -s err ] || grep -qv '^samlad: .' err; }; then
        bad "$name: stderr is not lines 'samlad: ...'"
    else
        ok
    fi
}
says() { if grep -q -- "$1" err out; then ok; else bad "'$1' is not said"; fi; }
# same A B: the folders hold the same bytes, but for the time it took
same() {
    if diff -r -x timings.jsonl "$1" "$2" >difference 2>&1; then ok; else
        bad "$3: $1 and $2 differ"
        head -n 5 difference | sed 's/^/    /'
    fi
}
# picture SHIFT: a bright box on a gradient; mask: where it is wrong
picture() {
    awk -v s="$1" 'BEGIN {
        print "P3\n40 32\n255"
        for (y = 0; y < 32; y++) for (x = 0; x < 40; x++) {
            v = (x * 3 + y * 2) % 90
            if (x > 8 + s && x < 20 + s && y > 6 && y < 18) print 230, v, 40
            else print v, v, v + 30
        }
    }'
}
mask() { awk 'BEGIN { print "P2 40 32 255"; for (i = 0; i < 40 * 32; i++) print i < 500 ? 255 : 0 }'; }
for i in 0 1 2 3; do picture $i >n$i.ppm; picture 1$i >a$i.ppm; done
mask >mask.pgm

# category DIR KIND...: four normal images, two good and two of each kind to judge
category() {
    into=$1
    shift
    mkdir -p "$into/train/good" "$into/test/good"
    for i in 0 1 2 3; do cp n$i.ppm "$into/train/good/$i.ppm"; done
    for i in 0 1; do cp n$i.ppm "$into/test/good/00$i.ppm"; done
    for kind; do
        mkdir -p "$into/test/$kind"
        for i in 0 1; do cp a$i.ppm "$into/test/$kind/00$i.ppm"; done
    done
}
# masks DIR KIND FORM: ground truth as LOCO (dir), MVTec AD (_mask), VisA (plain)
masks() {
    for i in 0 1; do
        g=$1/ground_truth/$2
        case $3 in
        dir) mkdir -p "$g/00$i" && cp mask.pgm "$g/00$i/000.pgm" ;;
        _mask) mkdir -p "$g" && cp mask.pgm "$g/00${i}_mask.pgm" ;;
        plain) mkdir -p "$g" && cp mask.pgm "$g/00$i.pgm" ;;
        esac
    done
}

# ---- layouts -------------------------------------------------------------------------------------------
for c in breakfast_box juice_bottle pushpins screw_bag splicing_connectors; do
    category loco/$c logical_anomalies structural_anomalies
    masks loco/$c logical_anomalies dir
    masks loco/$c structural_anomalies dir
    echo '[{"defect_name":"any","pixel_value":255,"saturation_threshold":1.0,"relative_saturation":true}]' >loco/$c/defects_config.json
done
expect 0 "mvtec-loco" "$bin" eval loco -o out.loco $small
says "^mvtec-loco "
says "auroc.mean"
there out.loco/results.json out.loco/results.csv out.loco/results.md out.loco/results.jsonl out.loco/anomaly_maps/pushpins/test/logical_anomalies/001.tiff
gone out.loco/scenes out.loco/pictures
# the baselines on the same features, in every output
says "^auroc.mean  *samlad  position-nn  patchcore-like  anomaly-dino$"
says "^auspro.5  *samlad  position-nn"
says "^mean  *[01]\.[0-9]*   *[01]\.[0-9]*[* ]"
says "^\(no baseline is better than samlad\|better than samlad: .*\) in image AUROC (auroc.mean [01]\."
there out.loco/baselines/position-nn/pushpins/test/good/000.tiff out.loco/baselines/anomaly-dino/pushpins/test/logical_anomalies/001.tiff
grep -q '"baselines":{"position-nn":[-0-9.e]*,"patchcore-like":[-0-9.e]*,"anomaly-dino":[-0-9.e]*}}$' out.loco/records/pushpins/test/good/000.json && ok || bad "the record has no baselines"
grep -q '^mean,patchcore-like.auspro.5,[01]' out.loco/results.csv && ok || bad "CSV has no baselines"
grep -q '"baselines":{"position-nn":{"auroc.logical_anomalies":' out.loco/results.json && ok || bad "JSON has no baselines"
grep -q '^| pushpins | anomaly-dino | ' out.loco/results.md && ok || bad "Markdown has no baselines"
grep -q '| MVTec LOCO AD, detection, mean AUROC | 90.7 | |$' out.loco/results.md && ok || bad "a small set stands beside the paper's"
category ad/bottle broken
masks ad/bottle broken _mask
category ad/carpet hole
masks ad/carpet hole _mask
expect 0 "mvtec-ad, two categories" "$bin" eval ad --category carpet --category bottle $small
says "^mvtec-ad "
says "^bottle "
category visa/1cls/pcb1 bad
masks visa/1cls/pcb1 bad plain
expect 0 "visa, reorganised" "$bin" eval visa --category pcb1 $small
says "^bad  *AUROC .*(2 against 2 good)"
mkdir -p csv/split_csv csv/candle/Data/Images/Normal csv/candle/Data/Images/Anomaly csv/candle/Data/Masks/Anomaly
echo "object,split,label,image,mask" >csv/split_csv/1cls.csv
for i in 0 1 2 3; do
    cp n$i.ppm csv/candle/Data/Images/Normal/$i.ppm
    cp a$i.ppm csv/candle/Data/Images/Anomaly/$i.ppm
    cp mask.pgm csv/candle/Data/Masks/Anomaly/$i.pgm
    [ $i -lt 2 ] && s=train || s=test
    printf 'candle,%s,normal,candle/Data/Images/Normal/%s.ppm,\r\n' $s $i >>csv/split_csv/1cls.csv
    echo "candle,test,anomaly,candle/Data/Images/Anomaly/$i.ppm,candle/Data/Masks/Anomaly/$i.pgm" >>csv/split_csv/1cls.csv
done
expect 0 "visa, as published" "$bin" eval csv --category candle $small -o out.csv
says "^bad  *AUROC .*(4 against 2 good)"
says "bank of 2 images"
there out.csv/anomaly_maps/candle/test/bad/3.tiff
category digits missing disordered flipped zero
expect 0 "digit-anatomy" "$bin" eval digits $small
says "^zero "
mkdir -p own/normal own/good own/scratched own/masks/scratched
for i in 0 1 2; do cp n$i.ppm own/normal; done
cp n3.ppm own/good && cp a0.ppm own/scratched
expect 0 "folder of one's own" "$bin" eval own $small --json
says '"dataset":"folder"'
says '"auroc.pixels":null'
cp mask.pgm own/masks/scratched/a0.pgm
expect 0 "and with masks" "$bin" eval own $small
says "pixels  *AUROC 0\."
expect 0 "the kind can be named" "$bin" eval loco/pushpins --dataset folder $small
expect 2 "a kind that is none" "$bin" eval own --dataset mvtec $small

# other names, in any case; nested folders; test_layouts.c has each layout
mkdir -p ngs/OK/s1 ngs/OK/s2 ngs/NG/hole/s1 ngs/gt
cp n0.ppm ngs/OK/s1/0.ppm && cp n1.ppm ngs/OK/s1/1.ppm && cp n2.ppm n3.ppm ngs/OK/s2
cp a0.ppm a1.ppm ngs/NG/hole/s1 && cp mask.pgm ngs/gt/a0_GT.PGM && cp mask.pgm ngs/gt/a1.pgm
expect 0 "OK and NG" "$bin" eval ngs $small
says "^ngs: no good test images.*--hold-out N"
expect 0 "held out" "$bin" eval ngs -o out.ngs $small --hold-out 2
says "^ngs: 2 of 4 normal images are kept for the test: s1/1.ppm, s2/n3.ppm$"
says "^hole  *AUROC .*(2 against 2 good)"
says "^pixels  *AUROC 0\."
grep -q '"held_out":\["s1/1.ppm","s2/n3.ppm"\]' out.ngs/results.json && ok || bad "results.json does not name the images that were held out"
there out.ngs/anomaly_maps/ngs/test/hole/s1/a0.tiff out.ngs/records/ngs/test/good/s1/1.json
expect 0 "a merge lists the data set in the same way" "$bin" eval --merge out.ngs
says "^hole  *AUROC .*(2 against 2 good)"
expect 1 "none is left for the bank" "$bin" eval ngs $small --hold-out 4
expect 2 "--hold-out 0" "$bin" eval ngs $small --hold-out 0
mkdir fine && cp n*.ppm fine
expect 0 "named folders" "$bin" eval $small --normal fine --anomalous ngs/NG --masks ngs/gt --hold-out 1
says "^hole  *AUROC .*(2 against 1 good)"
expect 2 "one named folder is too few" "$bin" eval $small --normal fine
expect 1 "a named folder that is not there" "$bin" eval ngs $small --masks nomasks
mkdir -p calm/train/good calm/test/good && cp n0.ppm n1.ppm calm/train/good && cp n2.ppm calm/test/good
expect 0 "nothing anomalous" "$bin" eval calm -o out.calm $small
says "^calm: no anomalous test images, so nothing was measured$"
grep -q '"auroc.all":null,"ap.all":null,"f1.all":null' out.calm/results.json && ok || bad "figures of nothing"
# told, and no failure: masks of no image, odd ones, images without labels
mkdir ngs/test_private && cp n0.ppm ngs/test_private && cp mask.pgm ngs/gt/stray.pgm && echo "P2 40 32 1 $(yes 0 | head -n 1280 | paste -sd' ')" >ngs/gt/a1.pgm
"$bin" eval ngs -o out.told $small --hold-out 1 >out 2>err </dev/null && ok || bad "warnings are a failure"
says "^samlad: warning: ngs/gt/stray.pgm: this mask belongs to no test image$"
says "^samlad: warning: ngs/gt/a1.pgm: this mask is empty"
says "^samlad: warning: ngs/test_private: 1 image is left out: they have no labels$"
grep -q '"warnings":\["ngs/test_private: 1 image[^"]*","ngs/gt/stray.pgm: [^"]*","ngs/gt/a1.pgm: [^"]*"\]' out.told/results.json && ok || bad "results.json does not have the warnings"
# masks of another size
echo "P2 20 16 1 $(yes 1 | head -n 100 | paste -sd' ') $(yes 0 | head -n 220 | paste -sd' ')" >ngs/gt/a1.pgm
rm -r ngs/test_private ngs/gt/stray.pgm
expect 1 "a smaller mask" "$bin" eval ngs $small --hold-out 1
says "ngs/gt/a1.pgm: the ground truth is 20x16, its image 40x32 (--resize-masks"
expect 0 "resized" "$bin" eval ngs $small --hold-out 1 --resize-masks
# two endings of one name: both are judged
cp a2.ppm ngs/NG/hole/s1/a0.pnm
expect 0 "two endings of a name" "$bin" eval ngs -o out.twins $small --hold-out 1 --resize-masks
there out.twins/anomaly_maps/ngs/test/hole/s1/a0.ppm.tiff out.twins/anomaly_maps/ngs/test/hole/s1/a0.pnm.tiff out.twins/records/ngs/test/hole/s1/a1.json
[ "$(grep -c '"image":"ngs/test/hole/s1/a0.p[pn]m"' out.twins/results.jsonl)" -eq 2 ] && ok || bad "twins in results.jsonl"
# the bank of such a folder is refused; named folders are taken
expect 1 "a bank of OK and NG" "$bin" bank ngs -o ngs.bank $weights --no-objects 1 --size 32
says "ngs/NG/hole/s1/a0.pnm: anomalous images would be taken for normal ones: give ngs/OK instead"
gone ngs.bank
expect 0 "without the others" "$bin" bank ngs -o ngs.bank $weights --no-objects 1 --size 32 --anomalous NG --masks gt
says "4 normal images"
says "^images from ngs/OK/s1 (2), ngs/OK/s2 (2)$"
expect 1 "a folder that is not there" "$bin" bank ngs/OK -o none.bank $weights --no-objects 1 --anomalous N6
says "^samlad: --anomalous N6: there is no such folder, neither here nor in an input$"
expect 1 "masks that are not there" "$bin" bank ngs/OK -o none.bank $weights --no-objects 1 --masks g7
expect 2 "--from has no images" "$bin" bank --from ngs.bank -o none.bank --masks gt
mkdir lines && cp -r ngs lines/a && mkdir lines/NG
expect 1 "a folder below one that is given" "$bin" bank lines -o none.bank $weights --no-objects 1 --anomalous NG --masks a/gt
says "anomalous images would be taken for normal ones: give lines/a/OK instead$"
rm -r lines
mkdir -p lines/my_masks lines/ground_truth/hole && cp n0.ppm lines && cp mask.pgm lines/my_masks && cp mask.pgm lines/ground_truth/hole
expect 1 "masks under another name" "$bin" bank lines -o none.bank $weights --no-objects 1 --masks ground_truth
says "^samlad: lines/my_masks/mask.pgm: masks would be taken for normal ones"
expect 1 "a kind of masks" "$bin" bank lines/ground_truth/hole -o none.bank $weights --no-objects 1
says "^samlad: lines/ground_truth/hole/mask.pgm: masks would be taken for normal ones"
rm -r lines
mkdir -p ground_coffee/good && cp n0.ppm ground_coffee/good
expect 0 "a product whose name begins with ground" "$bin" bank ground_coffee/good -o none.bank $weights --no-objects 1
rm -r ground_coffee none.bank
# the results do not lie among the images
for out in ngs ngs/OK ngs/NG/hole; do
    expect 1 "results among the images, $out" "$bin" eval ngs $small --hold-out 1 --resize-masks -o $out
    says "^samlad: $out: the results would lie among the images, as "
done
gone ngs/run.json ngs/OK/run.json
expect 0 "results beside them" "$bin" eval ngs $small --hold-out 1 --resize-masks -o ngs/new
expect 0 "which are no images" "$bin" eval ngs $small --hold-out 1 --resize-masks -o ngs/new
says "0 of them done now"
rm -r ngs/new
mkdir -p kinds/train kinds/test/0_normal kinds/test/1_defect && cp n0.ppm n1.ppm kinds/train && cp n2.ppm kinds/test/0_normal && cp a0.ppm kinds/test/1_defect
expect 1 "a kind that may be normal" "$bin" eval kinds $small
says "^samlad: kinds/test/0_normal: is this a kind of anomaly? By its name it may be normal: rename it to good"
expect 0 "the anomalous ones are named" "$bin" eval kinds $small --hold-out 1 --anomalous test/1_defect
rm -r kinds
expect 1 "a bank of masks" "$bin" bank ngs/gt -o none.bank $weights --no-objects 1
says "^samlad: ngs/gt/a0_GT.PGM: masks would be taken for normal ones"
gone none.bank
# one image is not both
expect 1 "the normal images as masks" "$bin" eval ngs $small --hold-out 1 --masks OK
says "^samlad: --masks ngs/OK: the images in ngs/OK would be masks$"
expect 1 "the normal images as anomalous ones" "$bin" eval ngs $small --hold-out 1 --anomalous OK
says "--anomalous ngs/OK: the normal images are in ngs/OK, so they would be both$"
expect 1 "a folder of both" "$bin" eval $small --normal ngs/OK --anomalous ngs
ln ngs/OK/s1/0.ppm ngs/NG/hole/s1/same.ppm && mkdir ngs/test && mv ngs/NG ngs/test/NG && mkdir ngs/test/good && cp n0.ppm ngs/test/good && ln -s ../../OK/s1/1.ppm ngs/test/good/1.ppm
expect 1 "one file as both" "$bin" eval ngs $small --resize-masks
says "ngs/OK/s1/0.ppm and ngs/test/NG/hole/s1/same.ppm: one file as a normal image and as an anomalous one$"
rm ngs/test/NG/hole/s1/same.ppm
"$bin" eval ngs $small --resize-masks >out 2>err </dev/null && ok || bad "a good test image of the bank"
says "^samlad: warning: ngs/test/good/1.ppm: this good test image is in the bank, too, as ngs/OK/s1/1.ppm$"
# links to nothing and pipes; a kind with a long name
ln -s nowhere ngs/OK/s1/lost.png && ln -s nowhere ngs/test/good/lost.ppm && mkfifo ngs/OK/s1/pipe.png
"$bin" eval ngs $small --resize-masks >out 2>err </dev/null && bad "links to nothing" || ok
says "^samlad: ngs/OK/s1/lost.png: cannot open: No such file or directory$"
says "^samlad: ngs/test/good/lost.ppm: "
"$bin" eval ngs -o out.odd $small --resize-masks --skip-unreadable >out 2>err </dev/null && ok || bad "links to nothing are not left out"
says "^1 file is no picture: pipe.png (no file)$"
grep -q '"unreadable":\["OK/s1/lost.png","test/good/lost.ppm"\]' out.odd/results.json && ok || bad "results.json does not name the links"
rm ngs/OK/s1/lost.png ngs/OK/s1/pipe.png ngs/test/good/lost.ppm
long=$(printf '%0250d' 7)
cp -r ngs/test/NG/hole/s1 "ngs/test/${long}a" && cp -r ngs/test/NG/hole/s1 "ngs/test/${long}b"
"$bin" eval ngs -o out.long $small --resize-masks >out 2>err </dev/null && ok || bad "kinds with long names"
grep -q "\"auroc.${long}a\":.*\"auroc.${long}b\":" out.long/results.json && ok || bad "long kinds are cut"
rm -r ngs/test/${long}* && mv ngs/test/NG ngs/NG && rm -r ngs/test out.long
# TIFF files of floats are no images
mkdir -p floats/train/good floats/test/good && cp n0.ppm floats/test/good && cp out.odd/anomaly_maps/ngs/test/NG/hole/s1/a1.tiff floats/train/good/0.tiff
"$bin" eval floats $small >out 2>err </dev/null && bad "a bank of floats" || ok
says "floats: there are no normal images for the bank (train/good, train or good); these are no pictures: 0.tiff (floats)$"
rm -r floats out.odd
expect 0 "--normal" "$bin" bank --normal ngs/NG/hole -o ngs.bank $weights --no-objects 1 --size 32
says "3 normal images"
rm -r ngs ngs.bank fine calm out.ngs out.calm out.told out.twins

# ---- problems are reported first -----------------------------------------------------------------------
expect 1 "a missing category" "$bin" eval visa $small
says "visa/1cls/candle: the category candle of visa is missing"
says "11 problems"
cp -r loco broken
echo "no image" >broken/pushpins/test/good/000.ppm
awk 'BEGIN { print "P2 3 3 1"; for (i = 0; i < 9; i++) print 1 }' >broken/juice_bottle/ground_truth/logical_anomalies/001/000.pgm
rm -r broken/screw_bag/ground_truth/structural_anomalies/000 broken/breakfast_box/defects_config.json
cp n0.ppm broken/splicing_connectors/test/good/000.pnm # judged as 000.pnm beside 000.ppm
cp n0.ppm broken/splicing_connectors/test/good/000.ppm.ppm
mkdir broken/splicing_connectors/test/good/rgb && cp n0.ppm broken/splicing_connectors/test/good/rgb/000.ppm
expect 1 "five problems at once" "$bin" eval broken -o out.broken $small
says "broken/pushpins/test/good/000.ppm: not a PNG, JPEG, PNM, BMP or TIFF image"
says "juice_bottle/ground_truth/logical_anomalies/001/000.pgm: the ground truth is 3x3, its image 40x32"
says "screw_bag/test/structural_anomalies/000.ppm: there is no ground truth"
says "breakfast_box/defects_config.json is missing"
says "both results would have the same name"
says "5 problems in this data set, nothing was begun"
gone out.broken
expect 1 "a category that is none" "$bin" eval loco/pushpins --category screw_bag $small
expect 1 "no folder" "$bin" eval nowhere $small
printf 'object,split,label,image,mask\ncandle,test,normal,../../n0.ppm,\n' >csv/split_csv/1cls.csv
expect 1 "a path that leaves the folder" "$bin" eval csv --category candle $small
says "line 2: the image '../../n0.ppm' does not lie in the data set$"
head=object,split,label,image,mask
row=candle/Data/Images/Normal/0.ppm
visa_table() { # WHAT SAYS TEXT [all]: a table that is not VisA's
    printf "$3" >csv/split_csv/1cls.csv
    if [ -n "$4" ]; then category=; else category="--category candle"; fi
    expect 1 "VisA's table: $1" "$bin" eval csv $category $small
    says "$2"
}
visa_table "a split of another name" "line 3: split 'valid'" "$head\ncandle,train,normal,$row,\ncandle,valid,normal,$row,\n"
visa_table "a label of another name" "line 2: label 'Normal'" "$head\ncandle,test,Normal,$row,\n"
visa_table "no head" "the first line is not $head" "candle,train,normal,$row,\n"
visa_table "columns in another order" "the first line is not $head" "split,object,label,image,mask\ncandle,train,normal,$row,\n"
visa_table "too many columns" "line 2" "$head\ncandle,train,normal,$row,,,\n"
visa_table "a mask elsewhere" "line 2: the mask '/m.pgm' does not lie in the data set" "$head\ncandle,test,anomaly,$row,/m.pgm\n"
visa_table "an open quote" "line 2 is not $head" "$head\ncandle,test,\"anomaly,$row,\n"
printf "\357\273\277$head\r\ncandle,train,normal,$row,\r\ncandle,test,normal,candle/Data/Images/Normal/1.ppm,\r\n" >csv/split_csv/1cls.csv
printf '"candle",test,"anomaly",candle/Data/Images/Anomaly/1.ppm,"candle/Data/Masks/Anomaly/1.pgm"\r\n' >>csv/split_csv/1cls.csv
expect 0 "VisA's table with a UTF-8 mark" "$bin" eval csv --category candle $small
says "^bad  *AUROC .*(1 against 1 good)"
visa_table "an object of another name" "line 3: 'cndle' is no category of VisA" "$head\ncandle,train,normal,$row,\ncndle,test,normal,$row,\n" all
visa_table "a NUL" "NUL" "$head\ncandle,train,normal,$row,\\000\n"
for kind in all pixels mean; do
    category taken/$kind/pushpins logical_anomalies $kind
    masks taken/$kind/pushpins logical_anomalies dir
    masks taken/$kind/pushpins $kind dir
    cp loco/pushpins/defects_config.json taken/$kind/pushpins
    expect 1 "a kind of tests called $kind" "$bin" eval taken/$kind/pushpins -o out.taken $small
    says "/pushpins/test/$kind: give this folder another name"
done
gone out.taken
expect 0 "mean, where no figure is called so" "$bin" eval taken/mean/pushpins --dataset folder $small
# names that CSV, JSON and Markdown must quote
category odd/normal 'a,"b' 'c|d'
mv odd/normal "odd/x,y|z\\"
category odd/plain 'a,"b' 'c|d'
expect 0 "odd names" "$bin" eval odd --dataset folder -o out.odd $small
grep -q '^"x,y|z\\","auroc.a,""b",[01]' out.odd/results.csv && ok || bad "CSV does not quote"
grep -q '^| x,y\\|z\\\\ | 4 | 6 |' out.odd/results.md && ok || bad "Markdown does not quote"
grep -q '^| category | bank | test | auroc.a,"b | auroc.c\\|d | auroc.all |' out.odd/results.md && ok || bad "Markdown's head does not quote"
if command -v python3 >/dev/null 2>&1; then
    python3 - out.odd >err 2>&1 <<'PYTHON' && ok || bad "odd names in JSON and CSV"
import csv, json, sys
times = [json.loads(line) for line in open(sys.argv[1] + "/timings.jsonl")]
assert sum(t["image"] == 'x,y|z\\/test/a,"b/000' and t["seconds"] > 0 for t in times) == 1, times
rows = list(csv.DictReader(open(sys.argv[1] + "/results.csv")))
assert {r["category"] for r in rows} == {"x,y|z\\", "plain", "mean"} and all(len(r) == 4 for r in rows)
PYTHON
else
    echo "  skipped: JSON and CSV of odd names are not parsed without python3"
    skipped=$((skipped + 1))
fi
# a cut image with a whole header is told before the work, too (tests/test_unreadable.sh has more)
cp -r ad cut
head -c 900 n0.ppm >cut/bottle/test/good/001.ppm
expect 1 "a cut image" "$bin" eval cut --dataset folder -o out.cut $small
says "cut/bottle/test/good/001.ppm"
gone out.cut

# ---- another setting, weight or image is noticed --------------------------------------------------------
expect 0 "a run" "$bin" eval ad --dataset folder -o out.ad $small
mkdir -p out.ad/scratch out.ad/scenes/bottle
echo mine | tee out.ad/scratch/notes >out.ad/scenes/bottle/notes
expect 0 "again: nothing to do" "$bin" eval ad --dataset folder -o out.ad $small
says "0 of them done now"
rm -r out.ad/records/bottle out.ad/banks/bottle.bank
expect 0 "again, all of a category" "$bin" eval ad --dataset folder -o out.ad $small
there out.ad/scratch/notes out.ad/scenes/bottle/notes # folders of the user's that are called like ours
rm -rf out.ad/scratch out.ad/scenes
cp -r out.ad before
expect 1 "another option" "$bin" eval ad --dataset folder -o out.ad $small --k 3
says "--k was 40 and is 3 now"
expect 1 "another backbone" "$bin" eval ad --dataset folder -o out.ad $small --backbone "$here/golden/vit_registers_model.safetensors"
says "the weights of --backbone (sha256)\|--layer was"
expect 1 "no SAM" "$bin" eval ad --dataset folder -o out.ad $small --sam "$here/golden/sam_window_model.safetensors"
says "the weights of --sam (sha256) was"
expect 1 "fewer normal images" "$bin" eval ad --dataset folder -o out.ad $small --max-bank 2
says "--max-bank was 0 and is 2 now"
cp -r ad other
cp a3.ppm other/carpet/train/good/0.ppm
expect 1 "another normal image" "$bin" eval other --dataset folder -o out.ad $small
says "the normal images (sha256)"
cp ad/carpet/train/good/0.ppm other/carpet/train/good/0.ppm
cp other/carpet/test/hole/001.ppm was.ppm
tr 9 8 <was.ppm >other/carpet/test/hole/001.ppm
if cmp -s was.ppm other/carpet/test/hole/001.ppm; then bad "the image is the same"; else ok; fi
expect 1 "another test image of the same size: its result is another's" "$bin" eval --merge out.ad --data other
says "are not those of this run"
cp was.ppm other/carpet/test/hole/001.ppm
cp n3.ppm other/carpet/test/good/009.ppm
sed 's/"samlad":"[^"]*"/"samlad":"0.1.0"/' before/run.json >older.json
cp -r before older
mv older.json older/run.json
expect 1 "a run of an older program" "$bin" eval ad --dataset folder -o older $small
says "samlad's version was 0.1.0"
expect 1 "and its tables" "$bin" eval --merge older
says "was made by samlad 0.1.0"
rm -r older
expect 1 "a merge of no folder" "$bin" eval --merge nosuch
says "there is no such folder"
[ ! -e nosuch ] && ok || bad "a merge of no folder made one"
expect 1 "merged with another data set" "$bin" eval --merge out.ad --data other
says "are not those of this run"
same before out.ad "refusals change nothing"

# the baselines can be left out; a run has them or not
expect 1 "another choice of baselines" "$bin" eval ad --dataset folder -o out.ad $small --no-baselines
says "--baselines was on and is off now"
expect 0 "no baselines" "$bin" eval ad --dataset folder -o out.bare $small --no-baselines
if grep -q 'position-nn' out; then bad "baselines in spite of --no-baselines"; else ok; fi
gone out.bare/baselines
if grep -rq 'position-nn' out.bare; then bad "baselines in the files"; else ok; fi
expect 2 "a merge has the run's baselines" "$bin" eval --merge out.bare --no-baselines
for f in results.csv records/bottle/test/broken/000.json; do # what is left is the same
    sed '/,\(position-nn\|patchcore-like\|anomaly-dino\)\./d; s/,"baselines":{[^}]*}//' out.ad/$f | cmp -s - out.bare/$f && ok || bad "$f differs without baselines"
done
rm -r out.bare

# outputs can be added later; masks belong to the figures alone
expect 0 "no pictures" "$bin" eval ad --dataset folder -o out.late $small
gone out.late/pictures
expect 0 "pictures after all" "$bin" eval ad --dataset folder -o out.late $small_run
there out.late/pictures/bottle/test/good/000_heat.png out.late/pictures/carpet/test/hole/001_overlay.png
rm other/carpet/test/good/009.ppm
cp -r other masked
printf 'P2 40 32 255' >masked/carpet/ground_truth/hole/001_mask.pgm
expect 1 "a broken mask is told before the work" "$bin" eval masked --dataset folder -o out.masked $small
says "1 problem\|carpet/ground_truth/hole/001_mask.pgm"
gone out.masked
expect 0 "a run" "$bin" eval other --dataset folder -o out.masked $small
rm other/carpet/ground_truth/hole/001_mask.pgm
expect 0 "the same with a mask less" "$bin" eval other --dataset folder -o out.masked $small
says "0 of them done now"
rm -r masked out.masked out.late
cp -r ad seen # pictures that segment put there are no images
for i in train/good/0 test/good/000; do
    cp mask.pgm seen/bottle/${i}_masks.png
    echo '[]' >seen/bottle/${i}_masks.json
done
expect 0 "beside segment's pictures" "$bin" eval seen --dataset folder --category bottle $small
says "bank of 4 images .* 4 test images"
rm -r seen
expect 0 "no masks" "$bin" eval digits -o out.digits $small
grep -q '"threshold.pixels":null' out.digits/results.json && ok || bad "a threshold of no pixels"
mkdir -p many/train/good many/test/good
cp n0.ppm many/train/good
cp n1.ppm many/test/good
for i in $(seq 81); do mkdir many/test/kind$i && cp a0.ppm many/test/kind$i; done
expect 1 "81 kinds of tests" "$bin" eval many $small
says "more than 80 kinds"
rm -r many out.digits

# ---- many processes -------------------------------------------------------------------------------------
for i in 1 2 3; do expect 0 "shard $i" "$bin" eval ad --dataset folder -o shared --shard $i/3 $small; done
says "shard 3/3"
expect 0 "merge in place" "$bin" eval --merge shared
same out.ad shared "three shards in one folder"
for i in 1 2 3; do expect 0 "shard $i, its own folder" "$bin" eval ad --dataset folder -o apart.$i --shard $i/3 $small; done
expect 1 "merge of two thirds" "$bin" eval --merge apart.1 apart.2 -o merged
says "is not done yet"
expect 0 "merge" "$bin" eval --merge apart.1 apart.2 apart.3 -o merged
same out.ad merged "three shards in three folders"
# banks of more than a GiB (the holes of sparse files take no place): compared, not read whole
for i in 1 2; do
    cp -r apart.$i big.$i
    truncate -s 1025M big.$i/banks/bottle.bank
done
expect 1 "merge with a large bank" "$bin" eval --merge big.1 big.2 -o large
says "is not done yet" # by these two: the banks agree
printf x | dd of=big.2/banks/bottle.bank bs=1 seek=5000000 conv=notrunc 2>difference
expect 1 "merge with a large bank that differs" "$bin" eval --merge big.1 big.2 -o large
says "bottle.bank differ"
rm -r big.? large
# a temporary file beside the facts, from a process killed on another machine, is no category
: >merged/categories/bottle.json.tmp.another-machine.1
: >merged/categories/notes
expect 0 "merge beside a temporary file" "$bin" eval --merge merged
rm merged/categories/bottle.json.tmp.another-machine.1 merged/categories/notes
expect 0 "a run with another setting" "$bin" eval ad --dataset folder -o k3 $small --k 3
expect 1 "different runs are not merged" "$bin" eval --merge apart.1 k3 -o mixed
says "--k"
expect 2 "merge of several without -o" "$bin" eval --merge apart.1 apart.2
for o in 0/3 4/3 1 a/b 1/3x -1/3; do expect 2 "--shard $o" "$bin" eval ad -o x --shard=$o $small; done
expect 2 "shard without a folder" "$bin" eval ad --shard 1/3 $small
if command -v parallel >/dev/null 2>&1; then
    parallel --will-cite -j 3 "$bin" eval ad --dataset folder -o gnu --shard {}/3 $small ::: 1 2 3 >out 2>err </dev/null && ok || bad "GNU parallel"
    expect 0 "merge after GNU parallel" "$bin" eval --merge gnu
    same out.ad gnu "three shards under GNU parallel"
else
    echo "  skipped: GNU parallel is not installed"
    skipped=$((skipped + 2))
fi

# the Slurm recipe, as tasks 4, 6, 8 of an array
for i in 4 6 8; do
    expect 0 "Slurm task $i" env SAMLAD="$bin" SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_TASK_COUNT=3 SLURM_ARRAY_TASK_MIN=4 SLURM_ARRAY_TASK_MAX=8 \
        SLURM_CPUS_PER_TASK=1 sh "$here/../tools/slurm_eval.sh" ad slurm --dataset folder $small
done
expect 0 "merge after the array" "$bin" eval --merge slurm
same out.ad slurm "three tasks of a Slurm array"
sh "$here/../tools/slurm_eval.sh" ad >out 2>err && bad "the recipe without OUT" || ok

# ---- kill -9 at random moments --------------------------------------------------------------------------
# The same command until it ends; twenty times it is killed somewhere within the time that a whole run takes here and now.
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
start=$(milliseconds)
"$bin" eval ad --dataset folder -o killed $small >out 2>err </dev/null
whole=$(($(milliseconds) - start))
rm -r killed
random_time() {
    ms=$(($(od -An -N2 -tu2 /dev/urandom) % (whole + 1)))
    echo "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}
kills=0 rounds=0 ended_otherwise='' # the number of runs that end by themselves is chance, so they count as one
while [ $kills -lt 20 ] && [ $rounds -lt 300 ]; do
    rounds=$((rounds + 1))
    "$bin" eval ad --dataset folder -o killed $small >out 2>err </dev/null &
    pid=$!
    sleep "$(random_time)"
    if kill -9 $pid 2>/dev/null; then
        kills=$((kills + 1))
        wait $pid 2>/dev/null
    elif wait $pid; then # it was done: once more from the start
        diff -r -x timings.jsonl out.ad killed >difference 2>&1 || ended_otherwise="$ended_otherwise $kills"
        rm -r killed
        whole=$((whole * 9 / 10 + 1)) # the machine was busier when it was measured
    else
        ended_otherwise="$ended_otherwise $kills"
    fi
done
[ -z "$ended_otherwise" ] && ok || bad "runs that ended otherwise, after this many kills:$ended_otherwise"
[ $kills -eq 20 ] && ok || bad "only $kills of 20 kills"
expect 0 "after the last kill" "$bin" eval ad --dataset folder -o killed $small
same out.ad killed "after 20 kills"

# ---- a set with LOCO's categories and tables ------------------------------------------------------------------
mkdir tables
for c in breakfast_box juice_bottle pushpins screw_bag splicing_connectors; do
    mkdir tables/$c
    echo '[{"defect_name":"one","pixel_value":255,"saturation_threshold":40,"relative_saturation":false},
{"defect_name":"two","pixel_value":254,"saturation_threshold":0.5,"relative_saturation":true}]' >tables/$c/defects_config.json
done
expect 0 "synth loco" "$bin" synth loco --defects tables drawn --seed 2
expect 0 "eval of it" "$bin" eval drawn -o out.drawn $small
says "^pushpins "
says "auspro.5"
grep -q '^mean,auspro.30,0\.' out.drawn/results.csv && ok || bad "AU-sPRO at 30 %"
expect 1 "synth loco without tables" "$bin" synth loco --defects nowhere drawn2
gone drawn2
expect 2 "synth loco without --defects" "$bin" synth loco drawn2
sed -i 's/"pixel_value":254/"pixel_value":9/' drawn/screw_bag/defects_config.json
expect 1 "a mask that the table does not know" "$bin" eval drawn --category screw_bag -o out.drawn2 $small
says "screw_bag/ground_truth/"

# ---- ablations ------------------------------------------------------------------------------------------
tiny="--setting= --setting k=1 --setting align=pixel --setting size=48"
expect 0 "ablate" "$bin" ablate loco -o ablation --category pushpins --category screw_bag $tiny $small_run
says "^k=1 "
says "^default "
says "^anomaly-dino  *[01]\."
says "in image AUROC (auroc.mean [01]\."
grep -q '^| position-nn | ' ablation/ablation.md && ok || bad "no baselines in ablation.md"
grep -q '^patchcore-like,auroc.all,[01]' ablation/ablation.csv && ok || bad "no baselines in ablation.csv"
grep -q '"baselines":\[{"baseline":"position-nn","figures":{' ablation/ablation.json && ok || bad "no baselines in ablation.json"
gone ablation/settings/default/baselines ablation/settings/k=1/baselines
there ablation/ablation.md ablation/ablation.json ablation/ablation.csv ablation/settings/k=1/results.csv
gone ablation/scenes ablation/settings/default/anomaly_maps
cp -r loco loco2 # figures that ablate keeps are of these masks
expect 0 "ablate again" "$bin" ablate loco2 -o ablation2 --category pushpins --setting= $small_run
awk 'BEGIN { print "P2 40 32 255"; for (i = 0; i < 40 * 32; i++) print (i > 500 ? 255 : 0) }' >loco2/pushpins/ground_truth/logical_anomalies/000/000.pgm
expect 1 "with another mask" "$bin" ablate loco2 -o ablation2 --category pushpins --setting= --setting k=1 $small_run
says "the masks (sha256)"
rm -r loco2 ablation2
expect 0 "the default row is eval's" "$bin" eval loco -o plain --category pushpins --category screw_bag $small
same plain/records ablation/settings/default/records "the default row"
cmp -s plain/results.csv ablation/settings/default/results.csv && ok || bad "the default row's figures"
expect 0 "a row of its own" "$bin" eval loco -o plain1 --category pushpins --category screw_bag $small --no-baselines --size 48
same plain1/records ablation/settings/size=48/records "another size"
expect 0 "the paper's row" "$bin" ablate loco -o by_paper --category pushpins --setting 'alpha=0.3 method=paper' $small_run --tau 0.05
says "^alpha=0.3 method=paper "
expect 0 "the paper's run" "$bin" eval loco -o plain_paper --category pushpins $small --no-baselines --tau 0.05 --method paper --alpha 0.3
same plain_paper/records by_paper/settings/alpha=0.3,method=paper/records "the paper's row"
rm -r by_paper plain_paper
expect 0 "the rows of METHOD.md" "$bin" ablate loco -o rows --category pushpins $small_run
for row in default method=paper channel-graph=off position-weight=0 verify=0 verify-shift=0 count=0 alpha-unmatched=0 align=pixel register-reach=0 \
    register-unmatched=0 claims=0 object-quantile=0 nearest-weight=0 raster-weight=0 score=max no-objects=1; do
    says "^$row "
done
rm -r rows
mkdir ablation/scenes ablation/settings/default/banks
echo mine | tee ablation/scenes/notes >ablation/settings/default/banks/notes
expect 0 "ablate again" "$bin" ablate loco -o ablation --category pushpins --category screw_bag $tiny $small_run
there ablation/scenes/notes ablation/settings/default/banks/notes
rm -rf ablation/scenes ablation/settings/default/banks
expect 1 "ablate on another base" "$bin" ablate loco -o ablation --category pushpins --category screw_bag --setting k=2 $small_run --tau 0.1
says "--tau was"
expect 1 "a setting that is none" "$bin" ablate loco -o x --setting nonsense=1 $small_run
expect 1 "a setting without a value" "$bin" ablate loco -o x --setting k $small_run
expect 1 "a value that is none" "$bin" ablate loco -o x --setting k=0 $small_run
expect 2 "ablate without -o" "$bin" ablate loco
kills=0 rounds=0
while [ $kills -lt 5 ] && [ $rounds -lt 15 ]; do
    rounds=$((rounds + 1))
    "$bin" ablate loco -o ablated --category pushpins --category screw_bag $tiny $small_run >out 2>err </dev/null &
    pid=$!
    sleep "$(random_time)"
    if kill -9 $pid 2>/dev/null; then kills=$((kills + 1)); else rm -r ablated; fi
    wait $pid 2>/dev/null
done
mkdir -p ablated/categories
: >"ablated/categories/screw_bag.json.tmp.$(uname -n).$pid" # left by a kill at the wrong moment
expect 0 "ablate after $kills kills" "$bin" ablate loco -o ablated --category pushpins --category screw_bag $tiny $small_run
if diff -r -x timings.jsonl ablation ablated >difference 2>&1; then ok; else bad "killed ablation: $(head -n 3 difference)"; fi

# names of 255 bytes: outputs have shorter ones, and each its own; the JSON has the whole
category long hole
zeros=$(printf '%0250d' 0)
for i in 1 2; do cp a0.ppm "long/test/hole/$zeros$i.ppm"; done
expect 0 "names of 255 bytes" "$bin" eval long -o out.long $small_run
[ "$(ls out.long/records/long/test/hole | wc -l)" -eq 4 ] && [ "$(ls out.long/pictures/long/test/hole | wc -l)" -eq 8 ] && ok || bad "outputs of long names"
for i in 1 2; do
    grep -q "\"image\":\"long/test/hole/$zeros$i.ppm\"" out.long/results.jsonl && ok || bad "the JSON lacks the whole name"
done
cp -r out.long out.again
expect 0 "and once more" "$bin" eval long -o out.again $small_run
says " 0 of them done now"
same out.long out.again "long names"

summary
