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
  let importSpan: @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool
  let releaseSpan: @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void
  /// The arena that is the source, if one is.
  private(set) var parent: Arena?

  /// Makes a source of two functions.
  ///
  /// `importSpan` gets the context and the address of an `ImportRequest`, fills in the answer and returns whether there
  /// is one. The span may be larger than requested; it overlaps no other of the arena's. `releaseSpan` gets the context
  /// and the first and last value of a span that came from `importSpan`; it can't fail.
  public init(
    _ context: UnsafeMutableRawPointer?,
    importSpan: @escaping @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer) -> Bool,
    releaseSpan: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt64, UInt64) -> Void
  ) {
    self.context = context
    self.importSpan = importSpan
    self.releaseSpan = releaseSpan
  }

  /// Imports from another arena, which must outlive this one.
  public static func arena(_ parent: Arena) -> ArenaSource {
    var source = ArenaSource(
      UnsafeMutableRawPointer(parent.storage),
      importSpan: { context, request in
        guard let context else { return false }
        let request = request.assumingMemoryBound(to: ImportRequest.self)
        return Arena(context.assumingMemoryBound(to: ArenaState.self)).export(request)
      },
      releaseSpan: { context, first, last in
        guard let context else { return }
        Arena(context.assumingMemoryBound(to: ArenaState.self)).acceptReturn(first, last)
      })
    source.parent = parent
    return source
  }

  func requestSpan(_ request: ImportRequest) -> (start: UInt64, last: UInt64)? {
    assert(holdsNoSpinLock(), "an import with a spin lock held")
    var request = request
    let isGranted = withUnsafeMutablePointer(to: &request) {
      importSpan(context, UnsafeMutableRawPointer($0))
    }
    guard isGranted, request.first <= request.last else { return nil }
    return (request.first.rawValue, request.last.rawValue)
  }

  func release(_ start: UInt64, _ last: UInt64) {
    assert(holdsNoSpinLock(), "a release with a spin lock held")
    releaseSpan(context, start, last)
  }
}
