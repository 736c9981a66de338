// The source of an arena's spans: two C functions with a context, or another arena. The arena imports from it when it
// lacks space, and returns a span that has become wholly free.
//
// The arena calls the source with no lock held, and passes on the constraints of the request that caused the import,
// so that the span satisfies that request. (illumos imports for no constrained request, NetBSD ignores the window,
// FreeBSD asks for more and may get a span that does not help.)

import MemoryPrimitives

/// A request of an arena to its source, with the constraints of `xalloc`.
public struct ImportRequest {
  /// Values that the span must have at least.
  public var size: ArenaSize
  /// The constraints on a segment of `size` values in the span.
  public var constraints: ArenaConstraints
  /// The priority of the request that caused the import.
  public var priority: AllocationPriority
  /// The call site of that request.
  public var site: CallSite
  /// The answer, which the source fills in: the first value of the span.
  public var first: ArenaAddress = .lowest
  /// The last value of the span, inclusive.
  public var last: ArenaAddress = .lowest

  init(_ request: Request, extent: UInt64, priority: AllocationPriority, site: CallSite) {
    size = ArenaSize(extent + 1)
    constraints = ArenaConstraints(
      alignment: Alignment(request.alignment) ?? .byte, phase: ArenaSize(request.phase),
      nocross: Alignment(request.nocross), minimum: ArenaAddress(request.minimum),
      maximum: ArenaAddress(request.maximum))
    self.priority = priority
    self.site = site
  }
}

/// The import and release functions of an arena.
public struct ArenaSource {
  let context: UnsafeMutableRawPointer?
  let importing: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool
  let releasing: @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void

  /// Makes a source of two functions.
  ///
  /// `importing` gets the context and the address of an `ImportRequest`, fills in the answer and returns whether there
  /// is one. The span may be larger than requested; it overlaps no other of the arena's. `releasing` gets the context
  /// and the first and last value of a span that came from `importing`; it can't fail.
  public init(
    _ context: UnsafeMutableRawPointer?,
    importing: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool,
    releasing: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void
  ) {
    self.context = context
    self.importing = importing
    self.releasing = releasing
  }

  /// Imports from another arena, which must outlive this one.
  public static func arena(_ parent: Arena) -> ArenaSource {
    ArenaSource(
      UnsafeMutableRawPointer(parent.storage),
      importing: { context, request in
        guard let context else { return false }
        let request = request.assumingMemoryBound(to: ImportRequest.self)
        return Arena(context.assumingMemoryBound(to: ArenaState.self)).export(request)
      },
      releasing: { context, first, last in
        guard let context else { return }
        Arena(context.assumingMemoryBound(to: ArenaState.self)).acceptReturn(first, last)
      })
  }

  func requestSpan(_ request: ImportRequest) -> (start: UInt64, last: UInt64)? {
    assert(holdsNoSpinLock(), "an import with a spin lock held")
    var request = request
    let isGranted = withUnsafeMutablePointer(to: &request) { importing(context, UnsafeMutableRawPointer($0)) }
    guard isGranted, request.first <= request.last else { return nil }
    return (request.first.rawValue, request.last.rawValue)
  }

  func release(_ start: UInt64, _ last: UInt64) {
    assert(holdsNoSpinLock(), "a release with a spin lock held")
    releasing(context, start, last)
  }
}
