// The statistics of this layer.

import MemoryPrimitives
import Synchronization

extension KernelAddressSpace {
  /// Adds the rows of this layer to `statistics`.
  package func register(in statistics: Statistics) {
    func add(
      _ name: StaticString, _ about: StaticString,
      _ read: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt64
    ) {
      statistics.add(Statistic(name, .pages, .gauge, about, context: state, read: read))
    }
    add("vm.kernel.heap", "pages of wired heap memory") { KernelAddressSpace(from: $0).pages(.heap).rawValue }
    add("vm.kernel.metadata", "pages of wired metadata") {
      KernelAddressSpace(from: $0).pages(.metadata).rawValue
    }
    add("vm.kernel.interrupt", "pages wired for interrupt handlers") {
      KernelAddressSpace(from: $0).pages(.interrupt).rawValue
    }
    add("vm.kernel.wired", "pages wired straight from kernel_va") {
      KernelAddressSpace(from: $0).pages(.kernel).rawValue
    }
    add("vm.kernel.stacks", "pages of stacks, guard pages not counted") {
      KernelAddressSpace(from: $0).pages(.stack).rawValue
    }
    add("vm.kernel.device", "pages of device registers mapped") {
      KernelAddressSpace(from: $0).pages(.device).rawValue
    }
    add("vm.kernel.contiguous", "pages of contiguous memory mapped") {
      KernelAddressSpace(from: $0).pages(.contiguous).rawValue
    }
    add("vm.kernel.caller_frames", "pages of callers' frames mapped") {
      KernelAddressSpace(from: $0).pages(.callerFrames).rawValue
    }
    add("vm.kernel.pageable", "pages of addresses for pageable memory") {
      KernelAddressSpace(from: $0).pages(.pageable).rawValue
    }
    statistics.add(
      Statistic(
        "vm.kernel.failures", .requests, .counter, "requests for kernel space that failed",
        context: state, read: { KernelAddressSpace(from: $0).failureCount }))
  }

  private init(from context: UnsafeMutableRawPointer?) {
    state = context.unsafelyUnwrapped.assumingMemoryBound(to: State.self)
  }
}
