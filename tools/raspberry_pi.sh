#!/bin/bash
# Pastes the commands of docs/raspberry_pi.md on an emulated board: 64-bit ARM, Debian 13, which Raspberry Pi OS is made of, and
# its Python 3.13.
#
#   tools/raspberry_pi.sh FOLDER
#
# FOLDER keeps the board's files, 4 GB. Nothing is installed on this machine: the board's packages are unpacked, and it runs in a
# user namespace, which has a mount of binfmt_misc for itself from Linux 6.7 on. That takes apt-get and dpkg with Debian's
# sources, qemu-aarch64-static, and an hour or more. Left out are apt's commands; a module stands for the camera.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:?name a folder for the files of the board}"
folder=$(cd "$1" && pwd)
root=$folder/root

if [ ! -d "$root" ]; then
  apt=$folder/apt
  mkdir -p "$apt/state/lists/partial" "$apt/archives/partial" "$root.part"
  : >"$apt/status"
  mirror=$(apt-get indextargets --format '$(SITE)' | grep -v security | head -n 1)
  echo "deb $mirror trixie main" >"$apt/sources.list"
  options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Dir::State="$apt/state"
    -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" -o Dir::Etc::SourceList="$apt/sources.list"
    -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" install --yes --no-install-recommends --download-only \
    base-files bash dash coreutils findutils grep sed tar gzip g++ python3-venv
  dpkg -x "$apt"/archives/base-files_*.deb "$root.part"
  for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$root.part"; done
  mv "$root.part" "$root"
fi

# What the doc takes for granted: a copy of the repository, a photo, and a camera, which sees two images until Ctrl-C.
home=$root/home/pi
rm -rf "$home"
mkdir -p "$home/keras_binaryvit" "$root/usr/lib/python3/dist-packages"
git -C "$repository" archive HEAD | tar -x -C "$home/keras_binaryvit"
cat >"$root/usr/lib/python3/dist-packages/picamera2.py" <<'END'
from PIL import Image


class Picamera2:
    def __enter__(self):
        self.colors = ["lightblue", "darkgreen"]
        return self

    def __exit__(self, *_):
        pass

    def create_video_configuration(self, main):
        return main["size"]

    def configure(self, size):
        self.size = size

    def start(self):
        pass

    def capture_image(self):
        if not self.colors:
            raise KeyboardInterrupt
        return Image.new("RGB", self.size, self.colors.pop())
END
{
  echo 'set -e; cd ~/keras_binaryvit'
  sed -n '/^```bash$/,/^```$/{/^```/d;p}' "$repository/docs/raspberry_pi.md" | while IFS= read -r line; do
    case $line in
      "sudo apt "*) printf 'echo %q\n' "left out: $line" ;;
      "binaryvit-run "*) printf '%s\n' 'python -c "from PIL import Image; Image.new(\"RGB\", (640, 480)).save(\"photo.jpg\")"' ;;&
      *) printf 'echo %q\n%s\n' "\$ $line" "$line" ;;
    esac
  done
} >"$home/paste.sh"

cp /etc/resolv.conf /etc/hosts "$root/etc/"
mkdir -p "$root/etc/ssl"
cp -rL /etc/ssl/certs "$root/etc/ssl/"
touch "$root"/dev/{null,zero,random,urandom}
export root
exec unshare --user --map-root-user --mount --pid --fork --kill-child bash -euc '
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
  mask="\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
  printf %s ":aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >/proc/sys/fs/binfmt_misc/register
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  for device in null zero random urandom; do mount --bind "/dev/$device" "$root/dev/$device"; done
  exec env -i PATH=/usr/bin HOME=/home/pi LANG=C.UTF-8 SSL_CERT_DIR=/etc/ssl/certs QEMU_CPU=cortex-a76 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$(command -v chroot)" "$root" /usr/bin/bash /home/pi/paste.sh'
