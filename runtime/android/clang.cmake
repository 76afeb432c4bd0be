# Compiles for Android with Debian's clang 19, without an NDK: libc++ is LLVM's, the C headers are musl's, which agree with
# bionic's in all that the runtime uses, and what it may call is in bionic.txt. aar.py makes SYSROOT of these.
#
# ANDROID_ABI   arm64-v8a or x86_64
# SYSROOT       a folder with lib/libc.so, lib/libm.so, and the headers that musl lacks
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_ABI SYSROOT)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_SYSTEM_NAME Android)
set(CMAKE_SYSTEM_VERSION 1)  # with a higher one CMake looks for an NDK
set(llvm /usr/lib/llvm-19)
set(link)
if(ANDROID_ABI STREQUAL "x86_64")
  set(CMAKE_SYSTEM_PROCESSOR x86_64)
  set(link ${llvm}/lib/clang/19/lib/linux/libclang_rt.builtins-x86_64.a)  # __builtin_cpu_supports
elseif(ANDROID_ABI STREQUAL "arm64-v8a")
  set(CMAKE_SYSTEM_PROCESSOR aarch64)
else()
  message(FATAL_ERROR "ANDROID_ABI must be arm64-v8a or x86_64, but is '${ANDROID_ABI}'")
endif()
foreach(language C CXX)
  set(CMAKE_${language}_COMPILER_TARGET ${CMAKE_SYSTEM_PROCESSOR}-linux-android28)
  set(CMAKE_${language}_STANDARD_LIBRARIES_INIT "-lc ${link}")
  set(CMAKE_${language}_FLAGS_INIT
    "-nostdlibinc -isystem ${SYSROOT}/include -isystem /usr/include/x86_64-linux-musl -fstack-protector-strong -Werror")
endforeach()
set(CMAKE_C_COMPILER ${llvm}/bin/clang)
set(CMAKE_CXX_COMPILER ${llvm}/bin/clang++)
string(PREPEND CMAKE_CXX_FLAGS_INIT "-nostdinc++ -isystem ${llvm}/include/c++/v1 -D_LIBCPP_PROVIDES_DEFAULT_RUNE_TABLE "
  "-D_LIBCPP_REMOVE_TRANSITIVE_INCLUDES ")  # of <locale>, which needs what musl lacks
string(JOIN " " CMAKE_SHARED_LINKER_FLAGS_INIT --ld-path=${llvm}/bin/ld.lld -nostdlib -L${SYSROOT}/lib -Wl,-z,defs
  -Wl,-z,max-page-size=16384 -Wno-unused-command-line-argument)
