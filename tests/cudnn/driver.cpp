// libcuda.so.1 for cuDNN's compiler, which looks these up, and loads what it has compiled: that succeeds
// here, and nothing runs. There is no card: whoever asks for one is told so.
#include <cstdint>

namespace {
constexpr int kSuccess = 0, kNoDevice = 100;
int handle = 0;  // what made-up libraries and kernels point at
}  // namespace

#define ABSENT(name)  \
  int name() {        \
    return kNoDevice; \
  }
#define DONE(name)   \
  int name() {       \
    return kSuccess; \
  }
#define MADE(name)        \
  int name(void** made) { \
    *made = &handle;      \
    return kSuccess;      \
  }

extern "C" {

int cuGetErrorString(int, const char** text) {
  *text = "no card";
  return kSuccess;
}
int cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR_NO_DEVICE";
  return kSuccess;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return kSuccess;
}

MADE(cuLibraryLoadData)
MADE(cuLibraryGetKernel)
MADE(cuKernelGetFunction)
MADE(cuModuleLoadData)
MADE(cuModuleLoadDataEx)
MADE(cuModuleLoadFatBinary)
MADE(cuModuleGetFunction)
DONE(cuLibraryUnload)
DONE(cuModuleUnload)
DONE(cuFuncSetAttribute)
DONE(cuKernelSetAttribute)

ABSENT(cuInit)
ABSENT(cuCtxGetCurrent)
ABSENT(cuCtxGetDevice)
ABSENT(cuCtxGetLimit)
ABSENT(cuCtxPopCurrent)
ABSENT(cuCtxPushCurrent)
ABSENT(cuCtxSetCurrent)
ABSENT(cuDeviceGet)
ABSENT(cuDeviceGetAttribute)
ABSENT(cuDeviceGetCount)
ABSENT(cuDevicePrimaryCtxGetState)
ABSENT(cuDevicePrimaryCtxRelease)
ABSENT(cuDevicePrimaryCtxReset)
ABSENT(cuDevicePrimaryCtxRetain)
ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetCacheConfig)
ABSENT(cuKernelGetAttribute)
ABSENT(cuLaunchCooperativeKernel)
ABSENT(cuLaunchKernel)
ABSENT(cuLaunchKernelEx)
ABSENT(cuLibraryLoadFromFile)
ABSENT(cuLinkAddData)
ABSENT(cuLinkAddData_v2)
ABSENT(cuLinkAddFile_v2)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate)
ABSENT(cuLinkCreate_v2)
ABSENT(cuLinkDestroy)
ABSENT(cuMemcpyDtoH_v2)
ABSENT(cuModuleGetGlobal_v2)
ABSENT(cuModuleLoad)
ABSENT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
ABSENT(cuOccupancyMaxPotentialClusterSize)
ABSENT(cuPointerGetAttribute)
ABSENT(cuStreamGetCtx)
ABSENT(cuStreamSynchronize)
ABSENT(cuTensorMapEncodeTiled)
}
