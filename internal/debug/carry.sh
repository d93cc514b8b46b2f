# Writes the loader and the packed tools, which stdin has one after the other, into the first of the folders that can be written, and prints
# its name. Arguments: the size of both, that of the loader, a name of one's own, the folders. All of stdin is read in any case: container runtimes may wait for
# that when the program has ended.
all=$1 loader=$2 own=$3
shift 3
umask 077
for d; do
	mkdir -p "$d" 2>/dev/null || continue
	f=$d/$own
	(: >"$f") 2>/dev/null || continue
	# The loader is there when all is. It is checked as another's may be at work.
	if cat >"$f" && [ "$(wc -c <"$f")" -eq "$all" ] && mkdir "$f.new" &&
		tail -c "+$((loader + 1))" "$f" >"$f.new/proxy.000" && head -c "$loader" "$f" >"$f.new/loader" && chmod 700 "$f.new/loader" &&
		case $(BRIDGE_LOADER_CHECK=1 BRIDGE_LOADER_DIR="$f.new" "$f.new/loader") in "ok "*) ;; *) false ;; esac &&
		mv "$f.new/proxy.000" "$d/proxy.000" && mv "$f.new/loader" "$d/loader"; then
		rm -r "$f" "$f.new"
		echo "$d"
		exit 0
	fi
	cat >/dev/null
	rm -rf "$f" "$f.new"
	echo "what is written into $d is not whole, or is not executed" >&2
	exit 1
done
cat >/dev/null
echo "no folder can be written: $*" >&2
exit 1
